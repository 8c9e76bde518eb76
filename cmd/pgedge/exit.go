package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// Exit codes, as promised to scripts.
const (
	exitDone       = 0
	exitFailed     = 1
	exitUsage      = 2
	exitUnverified = 3 // done, but not everything was verified
	exitUnproven   = 4 // not proven in time
)

// codeError ends the program with a code of its own. A nil err prints nothing: the command has said it all.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *codeError) Unwrap() error { return e.err }

func usageErrorf(format string, args ...any) error {
	return &codeError{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// exitSilently ends with a code after the command has printed its own result.
func exitSilently(code int) error {
	if code == exitDone {
		return nil
	}
	return &codeError{code: code}
}

// exitCode prints err and turns it into the exit code. An error from before the command ran is cobra's own, and so
// is about usage.
func (a *app) exitCode(cmd *cobra.Command, err error) int {
	if err == nil {
		return exitDone
	}
	code := exitFailed
	var ce *codeError
	switch {
	case errors.As(err, &ce):
		code = ce.code
		if ce.err == nil {
			return code
		}
	case !a.ran:
		code = exitUsage
	case errors.Is(err, context.Canceled):
		err = errors.New("interrupted")
	}
	fmt.Fprintf(a.io.err, "pgedge: %v\n", err)
	if code == exitUsage && cmd != nil && !cmd.Hidden {
		if cmd.Runnable() {
			fmt.Fprintf(a.io.err, "usage: %s\n", cmd.UseLine())
		}
		fmt.Fprintf(a.io.err, "Run '%s --help' for help.\n", cmd.CommandPath())
	}
	return code
}
