package fleet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pgedge/internal/pgserver"
)

// NATS is a cluster of real server processes with JetStream that syncs every write.
type NATS struct {
	Servers []*NATSServer
	binary  string
}

// NATSServer is one of them. It keeps its address and directory over restarts.
type NATSServer struct {
	*Process
	Addr string // where clients connect, on loopback
	Port int

	conf, store string
	routePort   int
}

// startNATS starts n servers and returns when each takes connections. host is what they listen on: 127.0.0.1, or
// 0.0.0.0 for nodes in namespaces.
func startNATS(ctx context.Context, binary, dir, host string, n int) (*NATS, error) {
	c := &NATS{binary: binary}
	for i := range n {
		ports, err := pgserver.FreePorts("127.0.0.1", 2)
		if err != nil {
			return c, err
		}
		home := filepath.Join(dir, fmt.Sprintf("nats-%d", i+1))
		c.Servers = append(c.Servers, &NATSServer{
			Addr: fmt.Sprintf("127.0.0.1:%d", ports[0]), Port: ports[0], routePort: ports[1],
			conf: home + ".conf", store: home,
		})
	}
	for i, s := range c.Servers {
		if err := os.WriteFile(s.conf, []byte(c.config(i, host)), 0o600); err != nil {
			return c, err
		}
		if err := c.Start(ctx, i); err != nil {
			return c, err
		}
	}
	return c, nil
}

// config is the file of one server. no_advertise: a node must use the addresses it was given, since others may lead
// around a link that a test cuts.
func (c *NATS) config(i int, host string) string {
	s := c.Servers[i]
	var b strings.Builder
	fmt.Fprintf(&b, "server_name: nats-%d\nhost: %s\nport: %d\n", i+1, host, s.Port)
	fmt.Fprintf(&b, "jetstream { store_dir: %q, sync_interval: always, max_memory_store: 64MB, max_file_store: 10GB }\n", s.store)
	if len(c.Servers) > 1 {
		fmt.Fprintf(&b, "cluster {\n  name: fleet\n  listen: 127.0.0.1:%d\n  no_advertise: true\n  routes: [\n", s.routePort)
		for _, peer := range c.Servers {
			fmt.Fprintf(&b, "    nats://127.0.0.1:%d\n", peer.routePort)
		}
		b.WriteString("  ]\n}\n")
	}
	return b.String()
}

// Start runs a server, again after it was stopped, and returns when it takes connections.
func (c *NATS) Start(ctx context.Context, i int) error {
	s := c.Servers[i]
	p, err := startProcess(fmt.Sprintf("nats-%d", i+1), "", nil, c.binary, "-c", s.conf)
	if err != nil {
		return err
	}
	s.Process = p
	return waitListening(ctx, p, s.Addr)
}

// Wipe removes what a stopped server has stored.
func (c *NATS) Wipe(i int) error { return os.RemoveAll(c.Servers[i].store) }

// Backup copies what a stopped server has stored; Restore puts the copy back.
func (c *NATS) Backup(i int) error {
	s := c.Servers[i]
	if err := os.RemoveAll(s.store + ".backup"); err != nil {
		return err
	}
	return os.CopyFS(s.store+".backup", os.DirFS(s.store))
}

// Restore undoes what has been stored since Backup, while the server is stopped.
func (c *NATS) Restore(i int) error {
	s := c.Servers[i]
	if err := os.RemoveAll(s.store); err != nil {
		return err
	}
	return os.CopyFS(s.store, os.DirFS(s.store+".backup"))
}

// URL lists all servers as seen from host.
func (c *NATS) URL(host string) string {
	urls := make([]string, len(c.Servers))
	for i, s := range c.Servers {
		urls[i] = fmt.Sprintf("nats://%s:%d", host, s.Port)
	}
	return strings.Join(urls, ",")
}

// Connect connects to the servers as an ordinary tool would.
func (c *NATS) Connect() (*nats.Conn, error) {
	return nats.Connect(c.URL("127.0.0.1"), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond), nats.Timeout(2*time.Second))
}

// Leader is the index of the server that leads a stream, and an error while there is none.
func (c *NATS) Leader(ctx context.Context, stream string) (int, error) {
	nc, err := c.Connect()
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return 0, err
	}
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return 0, err
	}
	info := s.CachedInfo()
	if info.Cluster == nil {
		return 0, nil
	}
	for i := range c.Servers {
		if info.Cluster.Leader == fmt.Sprintf("nats-%d", i+1) {
			return i, nil
		}
	}
	return 0, fmt.Errorf("stream %s has no leader", stream)
}

// AwaitStreams returns when both streams have a leader and all their copies are current.
func (c *NATS) AwaitStreams(ctx context.Context) error {
	nc, err := c.Connect()
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	state := ""
	err = poll(ctx, "the streams to have a leader and current copies", func() (bool, error) {
		for _, name := range []string{"PGEDGE", "PGEDGE_RECEIPTS"} {
			// Without a leader there is no answer at all.
			short, cancel := context.WithTimeout(ctx, time.Second)
			s, err := js.Stream(short, name)
			cancel()
			if err != nil {
				state = fmt.Sprintf("%s at %s: %v", name, nc.ConnectedAddr(), err)
				return false, nil
			}
			info := s.CachedInfo()
			if info.Cluster == nil {
				continue
			}
			state = fmt.Sprintf("%s: leader %q", name, info.Cluster.Leader)
			if info.Cluster.Leader == "" {
				return false, nil
			}
			for _, r := range info.Cluster.Replicas {
				state += fmt.Sprintf(", %+v", *r)
				if !r.Current || r.Offline {
					return false, nil
				}
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("%w: %s", err, state)
	}
	return nil
}

func (c *NATS) stop() {
	for _, s := range c.Servers {
		if s.Process != nil {
			_ = s.Stop() // a server that had to be killed has left nothing that the fleet keeps
		}
	}
}
