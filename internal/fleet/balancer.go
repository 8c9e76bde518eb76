package fleet

import (
	"context"
	"fmt"
	"os"
	"strings"

	"pgedge/internal/pgserver"
)

// Balancer is HAProxy in TCP mode: it sends connections round robin to the nodes whose /readyz says 200.
type Balancer struct {
	*Process
	Addr string
}

func (f *Fleet) startBalancer(ctx context.Context) (*Balancer, error) {
	path, err := program("haproxy")
	if err != nil {
		return nil, err
	}
	ports, err := pgserver.FreePorts("127.0.0.1", 1)
	if err != nil {
		return nil, err
	}
	b := &Balancer{Addr: fmt.Sprintf("127.0.0.1:%d", ports[0])}
	var c strings.Builder
	c.WriteString("global\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n  retries 3\n  option redispatch\n")
	fmt.Fprintf(&c, "listen pgedge\n  bind %s\n  balance roundrobin\n  option httpchk GET /readyz\n  default-server inter 200ms fall 1 rise 1\n", b.Addr)
	for _, n := range f.Nodes {
		if n.ns == nil {
			fmt.Fprintf(&c, "  server %s %s check port %s\n", n.Name, n.Addr, n.Admin[strings.LastIndexByte(n.Admin, ':')+1:])
		}
	}
	conf := f.path("haproxy.cfg")
	if err := os.WriteFile(conf, []byte(c.String()), 0o600); err != nil {
		return nil, err
	}
	if b.Process, err = startProcess("haproxy", "", nil, path, "-db", "-f", conf); err != nil {
		return nil, err
	}
	return b, waitListening(ctx, b.Process, b.Addr)
}
