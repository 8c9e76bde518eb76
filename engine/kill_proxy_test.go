package engine

import (
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"

	"pgedge/codec"
)

// stepProxy stands between the engine and Postgres and stops the server's words to one role in the middle of a login:
// behind the message until says so of. Everything else passes.
type stepProxy struct {
	addr    string
	held    chan struct{} // one value per login that was stopped
	release chan struct{} // closed: nothing is stopped any more
}

func newStepProxy(t *testing.T, role string, until func(typ byte, body []byte) bool) *stepProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &stepProxy{addr: ln.Addr().String(), held: make(chan struct{}, 64), release: make(chan struct{})}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go p.serve(c, role, until)
		}
	}()
	return p
}

func (p *stepProxy) serve(client net.Conn, role string, until func(byte, []byte) bool) {
	defer client.Close()
	backend, err := net.Dial("tcp", server.Addr())
	if err != nil {
		return
	}
	defer backend.Close()
	startup := make([]byte, 4)
	if _, err := io.ReadFull(client, startup); err != nil {
		return
	}
	startup = append(startup, make([]byte, binary.BigEndian.Uint32(startup)-4)...)
	if _, err := io.ReadFull(client, startup[4:]); err != nil {
		return
	}
	backend.Write(startup)
	go func() {
		io.Copy(backend, client)
		backend.Close()
	}()
	if strings.Contains(string(startup), "user\x00"+role+"\x00") {
		for {
			var h [5]byte
			if _, err := io.ReadFull(backend, h[:]); err != nil {
				return
			}
			body := make([]byte, binary.BigEndian.Uint32(h[1:])-4)
			if _, err := io.ReadFull(backend, body); err != nil {
				return
			}
			if h[0] == 'Z' && until(h[0], body) { // in the middle of it
				client.Write(h[:3])
				p.held <- struct{}{}
				<-p.release
				client.Write(append(h[3:5:5], body...))
				break
			}
			client.Write(codec.AppendMessage(nil, h[0], body))
			if until(h[0], body) {
				p.held <- struct{}{}
				<-p.release
				break
			}
		}
	}
	io.Copy(client, backend)
}
