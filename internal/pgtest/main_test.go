package pgtest

import (
	"fmt"
	"os"
	"testing"
)

var server *Server

func TestMain(m *testing.M) {
	var err error
	if server, err = StartMain(Options{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := server.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}
