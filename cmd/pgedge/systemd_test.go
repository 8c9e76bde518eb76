package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgedge/internal/pgserver"
	"pgedge/internal/pgtest"
)

// notifySocket is the other end of NOTIFY_SOCKET.
func notifySocket(t *testing.T) (path string, await func(line string) string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pgedge-notify") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return path, func(line string) string {
		t.Helper()
		buf := make([]byte, 4096)
		conn.SetReadDeadline(time.Now().Add(pgtest.Patience))
		for {
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatalf("not notified of %s: %v", line, err)
			}
			if slices.Contains(strings.Split(string(buf[:n]), "\n"), line) {
				return string(buf[:n])
			}
		}
	}
}

// systemd opens the sockets, passes them on by number, and hears how the process is doing.
func TestANodeServesTheSocketsOfSystemdAndTellsItHowItIsDoing(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	dir := t.TempDir()
	unixPath := filepath.Join(os.TempDir(), fmt.Sprintf(".s.PGSQL.%d", tcp.Addr().(*net.TCPAddr).Port))
	unix, err := net.Listen("unix", unixPath)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	var files []*os.File
	for _, ln := range []interface{ File() (*os.File, error) }{tcp.(*net.TCPListener), unix.(*net.UnixListener)} {
		f, err := ln.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	notify, await := notifySocket(t)
	file := filepath.Join(dir, "pgedge.yaml")
	writeFile(t, file, fmt.Sprintf("node: edge-a\nlisten: ['systemd:local', systemd]\nadmin: off\nstate_dir: %s\ndatabases: {'*': {upstream: '%s'}}\n",
		filepath.Join(dir, "state"), pg.URL("pgedge_control", pgserver.Password("pgedge_control"), pgserver.Database)))
	start := func() *served {
		// LISTEN_PID has to be the process's own, which only a shell that becomes it knows beforehand.
		cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ WATCHDOG_PID=$$ exec pgedge serve --log-format json -c "$0"`, file)
		cmd.Env = append(cleanEnviron(), "LISTEN_FDS=2", "LISTEN_FDNAMES=clients:local", "NOTIFY_SOCKET="+notify, "WATCHDOG_USEC=3000000")
		cmd.ExtraFiles = files
		return startCommand(t, cmd)
	}
	node := start()
	await("STATUS=starting")
	await("READY=1")
	await("WATCHDOG=1")
	await("WATCHDOG=1")
	for _, host := range []string{"127.0.0.1", os.TempDir()} {
		cmd := exec.Command("psql", "-X", "-At", "-h", host, "-p", fmt.Sprint(tcp.Addr().(*net.TCPAddr).Port), "-U", "alice", "-d", pgserver.Database, "-c", "SELECT 'served'")
		cmd.Env = append(cleanEnviron(), "PGPASSWORD="+pgserver.Password("alice"))
		if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "served" {
			t.Errorf("through %s: %v, %s", host, err, out)
		}
	}
	node.cmd.Process.Signal(syscall.SIGHUP)
	if text := await("RELOADING=1"); !strings.Contains(text, "MONOTONIC_USEC=") {
		t.Errorf("told %q", text)
	}
	await("READY=1")
	node.cmd.Process.Signal(syscall.SIGTERM)
	if text := await("STOPPING=1"); !strings.Contains(text, "EXTEND_TIMEOUT_USEC=") {
		t.Errorf("told %q", text)
	}
	if code := node.exitCode(); code != 0 {
		t.Errorf("exit code %d: %s", code, node.seen)
	}

	// A client that comes while the node is away waits for the next one.
	waiting := make(chan error, 1)
	go func() {
		c, err := login(tcp.Addr().String(), "bob")
		if err == nil {
			c.Close(context.Background())
		}
		waiting <- err
	}()
	start()
	await("READY=1")
	if err := <-waiting; err != nil {
		t.Errorf("the client that waited: %v", err)
	}
}

func TestSocketsOfSystemdThatNobodyServesAreAnError(t *testing.T) {
	socket := func(name string) inheritedSocket { return inheritedSocket{name: name} }
	for what, c := range map[string]struct {
		listen  []string
		sockets []inheritedSocket
		want    string
	}{
		"none passed":       {[]string{"systemd"}, nil, "passed no socket: start pgedge through its socket unit"},
		"another name":      {[]string{"systemd:clients"}, []inheritedSocket{socket("other")}, "no socket with the name clients"},
		"one too many":      {[]string{"systemd:clients"}, []inheritedSocket{socket("clients"), socket("other")}, "not listed: other"},
		"not asked for":     {[]string{"127.0.0.1:6432"}, []inheritedSocket{socket("clients")}, "not listed: clients"},
		"only the named is": {[]string{"systemd:clients", "systemd"}, []inheritedSocket{socket("clients")}, "passed no socket"},
	} {
		if _, _, err := divideListen(c.listen, c.sockets); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	addrs, lns, err := divideListen([]string{"systemd", "127.0.0.1:1", "systemd:a"}, []inheritedSocket{socket("a"), socket("b"), socket("c")})
	if err != nil || len(lns) != 3 || !slices.Equal(addrs, []string{"127.0.0.1:1"}) {
		t.Errorf("%v, %d listeners, %v", addrs, len(lns), err)
	}
}
