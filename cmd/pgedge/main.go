// Command pgedge is a Postgres proxy whose one job is to end every session of a revoked user at once, and to prove
// it. This package is the command line: it reads flags, environment and files, wires the packages together, and
// says what happened.
package main

import (
	"context"
	"io"
	"os"
)

func main() { os.Exit(mainCode()) }

// mainCode runs the command line of this process and returns its exit code.
func mainCode() int {
	return run(context.Background(), os.Args[1:], stdio{in: os.Stdin, out: os.Stdout, err: os.Stderr})
}

// stdio is what a command reads from and writes to.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// run executes one command line and returns its exit code. Commands end with ctx.
func run(ctx context.Context, args []string, io stdio) int {
	a := &app{io: io}
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(io.in)
	root.SetOut(io.out)
	root.SetErr(io.err)
	cmd, err := root.ExecuteContextC(ctx)
	if a.stopSignals != nil {
		a.stopSignals()
	}
	return a.exitCode(cmd, err)
}
