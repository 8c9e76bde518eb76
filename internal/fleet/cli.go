package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Result is what a command printed and how it ended.
type Result struct {
	Args   []string
	Code   int
	Stdout string
	Stderr string
	Began  time.Time
	Ended  time.Time // when the command had returned
}

func (r Result) String() string {
	return fmt.Sprintf("pgedge %s: exit code %d after %s\n%s%s", strings.Join(r.Args, " "), r.Code, r.Ended.Sub(r.Began).Round(time.Millisecond), r.Stdout, r.Stderr)
}

// Verdict is the last line of a command that waits for receipts, run with -o json.
type Verdict struct {
	Revocation string `json:"revocation"`
	Seq        uint64 `json:"seq"`
	Verdict    string `json:"verdict"`
	Matched    int    `json:"matched"`
	Unverified int    `json:"unverified"`
	Nodes      []struct {
		Node    string  `json:"node"`
		Boot    string  `json:"boot"`
		Status  string  `json:"status"`
		AfterMS float64 `json:"after_ms"`
	} `json:"nodes"`
}

// Verdict reads the verdict out of the output of a command run with -o json.
func (r Result) Verdict() (Verdict, error) {
	for line := range strings.Lines(r.Stdout) {
		var v Verdict
		if json.Unmarshal([]byte(line), &v) == nil && v.Verdict != "" {
			return v, nil
		}
	}
	return Verdict{}, fmt.Errorf("no verdict in the output of %s", r)
}

// Status is a node's part of the verdict, "" when it is not named.
func (v Verdict) Status(node string) string {
	for _, n := range v.Nodes {
		if n.Node == node {
			return n.Status
		}
	}
	return ""
}

// CLI runs a pgedge command against the fleet's NATS servers.
func (f *Fleet) CLI(ctx context.Context, args ...string) Result {
	r := Result{Args: args, Began: time.Now()}
	cmd := exec.CommandContext(ctx, f.Binaries.Pgedge, args...)
	cmd.Env = append(os.Environ(), "PGEDGE_NATS="+f.NATS.URL("127.0.0.1"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r.Ended = time.Now()
	r.Stdout, r.Stderr = stdout.String(), stderr.String()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		r.Code = exit.ExitCode()
	case err != nil:
		r.Code = -1
		r.Stderr += err.Error()
	}
	return r
}
