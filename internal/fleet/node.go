package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"pgedge/internal/pgserver"
)

// Node is one `pgedge serve`. It keeps its name, addresses and state directory over restarts.
type Node struct {
	*Process // of the newest start; nil before the first
	Name     string
	Addr     string // where clients connect
	Admin    string // host:port of HTTP
	StateDir string

	fleet *Fleet
	ns    *namespace // nil: the machine's own network
	conf  string

	mu    sync.Mutex
	ready chan struct{} // of the newest start; closed when it serves
}

func (f *Fleet) newNode(i int) (*Node, error) {
	n := &Node{fleet: f, Name: fmt.Sprintf("edge-%d", i+1)}
	n.StateDir = f.path(n.Name)
	n.conf = n.StateDir + ".yaml"
	host, db, bus := "127.0.0.1", "127.0.0.1", "127.0.0.1"
	if i < f.Options.Namespaces {
		ns, err := addNamespace(i)
		if err != nil {
			return nil, err
		}
		f.namespace = append(f.namespace, ns)
		n.ns = ns
		host, db, bus = ns.clientHost, ns.databaseHost, ns.natsHost
	}
	ports, err := pgserver.FreePorts("127.0.0.1", 2)
	if err != nil {
		return nil, err
	}
	n.Addr, n.Admin = fmt.Sprintf("%s:%d", host, ports[0]), fmt.Sprintf("%s:%d", host, ports[1])
	upstream := ""
	if len(f.Upstreams) > 0 {
		upstream = f.Upstreams[i%len(f.Upstreams)]
	} else {
		upstream = fmt.Sprintf("%s:%d", db, f.Postgres.Port)
	}
	return n, os.WriteFile(n.conf, []byte(f.nodeConfig(n, upstream, bus)), 0o600)
}

func (f *Fleet) nodeConfig(n *Node, upstream, bus string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "node: %s\nlisten: [%q]\nadmin: %q\nstate_dir: %s\ncontact: security@example.com\n", n.Name, n.Addr, n.Admin, n.StateDir)
	fmt.Fprintf(&b, "databases:\n  '*':\n    upstream: %s?sslmode=disable\n", pgserver.URL(upstream, "pgedge_control", pgserver.Password("pgedge_control"), pgserver.Database))
	fmt.Fprintf(&b, "cluster:\n  nats: [%s]\n  replicas: %d\n", strings.ReplaceAll(f.NATS.URL(bus), ",", ", "), min(f.Options.NATS, 3))
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"heartbeat", f.Heartbeat}, {"lease", f.Lease}, {"freeze", f.Freeze},
		{"freeze_in_transaction", f.FreezeInTransaction}, {"verify_timeout", f.VerifyTimeout},
	} {
		if d.value > 0 {
			fmt.Fprintf(&b, "  %s: %s\n", d.key, d.value)
		}
	}
	if f.OnStale != "" {
		fmt.Fprintf(&b, "  on_stale: %s\n", f.OnStale)
	}
	if f.Drain > 0 {
		fmt.Fprintf(&b, "timeouts: {drain: %s}\n", f.Drain)
	}
	b.WriteString(f.Extra)
	return b.String()
}

// Launch starts the process and returns at once.
func (n *Node) Launch() error {
	ready := make(chan struct{})
	var once sync.Once
	netns := ""
	if n.ns != nil {
		netns = n.ns.name
	}
	p, err := startProcess(n.Name, netns, func(line string) {
		var entry struct {
			Msg string `json:"msg"`
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "ready" {
			once.Do(func() { close(ready) })
		}
	}, n.fleet.Binaries.Pgedge, "serve", "-c", n.conf, "--log-format", "json")
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.Process, n.ready = p, ready
	n.mu.Unlock()
	return nil
}

// AwaitReady returns when the newest start serves clients.
func (n *Node) AwaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	n.mu.Lock()
	p, ready := n.Process, n.ready
	n.mu.Unlock()
	select {
	case <-ready:
		return nil
	case <-p.exited:
		return fmt.Errorf("%s ended before it was ready: %v\n%s", n.Name, p.err, p.Log())
	case <-ctx.Done():
		return fmt.Errorf("%s did not become ready: %w\n%s", n.Name, ctx.Err(), p.Log())
	}
}

// Restart starts a node that has ended, and waits until it serves.
func (n *Node) Restart(ctx context.Context) error {
	if err := n.Launch(); err != nil {
		return err
	}
	return n.AwaitReady(ctx)
}

// Readyz asks the node whether it serves: the status, and the reason that it gives.
func (n *Node) Readyz(ctx context.Context) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.Admin+"/readyz", nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	var answer struct {
		Reason string `json:"reason"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return 0, "", err
	}
	return resp.StatusCode, answer.Reason, nil
}

// AwaitReadyz returns when /readyz has the wanted status.
func (n *Node) AwaitReadyz(ctx context.Context, status int) error {
	return poll(ctx, fmt.Sprintf("/readyz of %s to be %d", n.Name, status), func() (bool, error) {
		got, _, err := n.Readyz(ctx)
		return err == nil && got == status, nil
	})
}

// CutNATS cuts the node off from the NATS servers, and from nothing else: packets vanish in both directions.
func (n *Node) CutNATS() error { return n.ns.setNATS(false) }

// HealNATS undoes CutNATS.
func (n *Node) HealNATS() error { return n.ns.setNATS(true) }

// Metrics is the node's metrics page.
func (n *Node) Metrics(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.Admin+"/metrics", nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}
