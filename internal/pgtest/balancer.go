package pgtest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// NewBalancer listens on a free port of 127.0.0.1 and relays each connection to the next of its targets (host:port),
// in turn, until the test ends. A target that cannot be reached costs its client the connection.
func NewBalancer(tb testing.TB, targets ...string) (addr string) {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns = make(map[net.Conn]struct{})
		ended bool
	)
	hold := func(c net.Conn) bool {
		mu.Lock()
		defer mu.Unlock()
		if ended {
			c.Close()
			return false
		}
		conns[c] = struct{}{}
		return true
	}
	drop := func(c net.Conn) {
		mu.Lock()
		defer mu.Unlock()
		delete(conns, c)
		c.Close()
	}
	tb.Cleanup(func() {
		ln.Close()
		mu.Lock()
		ended = true
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	wg.Go(func() {
		for next := 0; ; next++ {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			target := targets[next%len(targets)]
			wg.Go(func() {
				if !hold(client) {
					return
				}
				defer drop(client)
				server, err := net.Dial("tcp", target)
				if err != nil || !hold(server) {
					return
				}
				defer drop(server)
				var pumps sync.WaitGroup
				for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
					pumps.Go(func() {
						io.Copy(way[1], way[0])
						way[1].(*net.TCPConn).CloseWrite()
					})
				}
				pumps.Wait()
			})
		}
	})
	return ln.Addr().String()
}
