// Command natsd is the NATS server of the version that go.mod names, as a program: fleets of tests and benchmarks run
// real server processes, which can be killed and stopped one by one.
//
//	natsd -c FILE
package main

import (
	"fmt"
	"os"

	"github.com/nats-io/nats-server/v2/server"
)

func main() {
	if len(os.Args) != 3 || os.Args[1] != "-c" {
		fmt.Fprintln(os.Stderr, "usage: natsd -c FILE")
		os.Exit(2)
	}
	if err := run(os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "natsd:", err)
		os.Exit(1)
	}
}

func run(file string) error {
	opts, err := server.ProcessConfigFile(file)
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", file, err)
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return fmt.Errorf("cannot set up the server: %w", err)
	}
	srv.ConfigureLogger()
	if err := server.Run(srv); err != nil {
		return err
	}
	srv.WaitForShutdown()
	return nil
}
