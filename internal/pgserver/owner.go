package pgserver

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// owner is the operating system user the server runs as. Postgres refuses to run as root, so root becomes the
// user `postgres`; everybody else stays who they are, which a nil cred says.
type owner struct {
	cred *syscall.Credential
}

func serverUser() (*owner, error) {
	if os.Getuid() != 0 {
		return &owner{}, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("cannot run Postgres as root, and there is no user postgres to become: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("cannot read the uid of postgres: %w", err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("cannot read the gid of postgres: %w", err)
	}
	return &owner{cred: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
}

func (o *owner) credential() *syscall.Credential { return o.cred }

// own gives a file to the server's user.
func (o *owner) own(path string) error {
	if o.cred == nil {
		return nil
	}
	if err := os.Chown(path, int(o.cred.Uid), int(o.cred.Gid)); err != nil {
		return fmt.Errorf("cannot give %s to the server's user: %w", path, err)
	}
	return nil
}

// tempRoot returns the temporary directory, or /tmp when the server's user could not walk to it or when the path
// is too long for a unix socket (108 bytes, Linux).
func (o *owner) tempRoot() string {
	const maxRoot = 50
	root := os.TempDir()
	if abs, err := filepath.Abs(root); err != nil || len(abs) > maxRoot || (o.cred != nil && !walkable(abs)) {
		return "/tmp"
	}
	return root
}

// walkable reports whether every directory of an absolute path lets everybody through.
func walkable(path string) bool {
	for {
		fi, err := os.Stat(path)
		if err != nil || fi.Mode()&0o001 == 0 {
			return false
		}
		if path == "/" {
			return true
		}
		path = filepath.Dir(path)
	}
}
