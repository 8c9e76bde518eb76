package fleet

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Binaries are the programs a fleet runs.
type Binaries struct {
	Pgedge string
	NATS   string
}

// Build compiles the programs from the checkout this runs in, into dir.
func Build(ctx context.Context, dir string) (Binaries, error) { return Binaries{}.complete(ctx, dir) }

// complete compiles the programs that are missing.
func (b Binaries) complete(ctx context.Context, dir string) (Binaries, error) {
	for _, p := range []struct {
		path      *string
		name, pkg string
	}{{&b.Pgedge, "pgedge", "pgedge/cmd/pgedge"}, {&b.NATS, "natsd", "pgedge/internal/natsd"}} {
		if *p.path != "" {
			continue
		}
		*p.path = filepath.Join(dir, p.name)
		cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", *p.path, p.pkg)
		cmd.Env = os.Environ()
		if msg, err := cmd.CombinedOutput(); err != nil {
			return b, fmt.Errorf("cannot build %s: %w\n%s", p.pkg, err, strings.TrimSpace(string(msg)))
		}
	}
	return b, nil
}

// program finds a program that Debian keeps outside of an ordinary user's PATH.
func program(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	if path, err := exec.LookPath("/usr/sbin/" + name); err == nil {
		return path, nil
	}
	return "", fmt.Errorf("%s is not installed: tools/need.sh %s", name, name)
}
