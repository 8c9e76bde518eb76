package cluster

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/oklog/ulid/v2"

	"pgedge/revoke"
)

const (
	// probeStream is a stream that does not exist. A publish that expects it is refused by JetStream after the
	// permissions have let it pass: what is asked is whether it may be said, and nothing is stored.
	probeStream = "PGEDGE_DOCTOR"
	// probeConsumerLife is after how long the server forgets the consumer of a diagnosis.
	probeConsumerLife = 5 * time.Second
)

// ErrNotStarted says that the NATS in question is embedded in a node that does not run.
var ErrNotStarted = errors.New("the embedded NATS server is not running: it starts with the node")

// Diagnosis is what NATS has shown to somebody who asked as a node would, without being one.
type Diagnosis struct {
	Server  string // name and address
	Version string
	// RoundTrip is one ping's, and ClockAhead how far the server's clock is ahead of ours, known to within it.
	RoundTrip  time.Duration
	ClockAhead time.Duration
	// Certificates are those that the server showed, its own first; empty without TLS.
	Certificates []*x509.Certificate
	// Streams says what is wrong with the streams; nil when a node would accept them.
	Streams error
	// Copies is how many servers hold the journal, and Behind those of them that are offline or not current.
	Copies int
	Behind []string
	// Missing are the rights that were tried and refused, Untried those that cannot be tried without an effect.
	Missing []*MissingRightError
	Untried []string
	// Read says why the journal cannot be read; nil when its last message was read.
	Read error
}

// Diagnose connects as the node of cfg would and tries what it needs. It stores nothing, takes no lock, and may be
// called beside the running node. The error is that of connecting, ErrNotStarted among others.
func Diagnose(ctx context.Context, cfg Config) (*Diagnosis, error) {
	cfg = cfg.withDefaults()
	d := &Diagnosis{Untried: []string{"publish on pgedge.revoke, kill and suspend, which would cut"}}
	var mu sync.Mutex
	closed := make(chan struct{})
	opts := append(connOptions("pgedge doctor", connHooks{
		disconnected: func(error) {},
		reconnected:  func() {},
		asyncError: func(_ *nats.Subscription, err error) {
			if missing := newRights(cfg.Node).note(err); missing != nil {
				mu.Lock()
				defer mu.Unlock()
				d.Missing = append(d.Missing, missing)
			}
		},
	}), nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
	urls := cfg.NATS
	if urls == Embedded {
		b, err := readSmallFile(filepath.Join(cfg.StateDir, natsURLFile))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, ErrNotStarted
		case err != nil:
			return nil, fmt.Errorf("cannot read %s: %w", filepath.Join(cfg.StateDir, natsURLFile), err)
		}
		urls = strings.TrimSpace(string(b))
	} else {
		credentials, err := cfg.Credentials.options()
		if err != nil {
			return nil, err
		}
		opts = append(append(opts, credentials...), nats.CustomInboxPrefix(inboxOfNode(cfg.Node)))
	}
	nc, err := nats.Connect(urls, opts...)
	if err != nil {
		if _, held := lockHolder(cfg.StateDir); cfg.NATS == Embedded && !held {
			return nil, ErrNotStarted
		}
		return nil, fmt.Errorf("cannot connect to NATS at %s: %w", redactURLs(urls), err)
	}
	defer nc.Close()
	if err := mayReceive(nc); err != nil {
		if missing := newRights(cfg.Node).note(err); missing != nil {
			return nil, missing
		}
		return nil, err
	}
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(followRequestTimeout))
	if err != nil {
		return nil, fmt.Errorf("cannot use JetStream: %w", err)
	}
	d.Server, d.Version = nc.ConnectedServerName()+" at "+nc.ConnectedAddr(), nc.ConnectedServerVersion()
	if d.RoundTrip, err = nc.RTT(); err != nil {
		return nil, fmt.Errorf("cannot measure the round trip to NATS: %w", err)
	}
	if state, err := nc.TLSConnectionState(); err == nil {
		d.Certificates = state.PeerCertificates
	}
	d.lookAtStreams(ctx, js, cfg)
	if d.Streams == nil {
		d.Read = readLast(ctx, js)
	}
	d.tryRights(ctx, nc, cfg)
	// The server speaks in order, and so do the callbacks: every refusal is noted before the connection says that it is
	// closed.
	if err := nc.FlushTimeout(followRequestTimeout); err != nil {
		return nil, fmt.Errorf("lost the connection to NATS: %w", err)
	}
	nc.Close()
	select {
	case <-closed:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	mu.Lock()
	defer mu.Unlock()
	return d, nil
}

func (d *Diagnosis) lookAtStreams(ctx context.Context, js jetstream.JetStream, cfg Config) {
	if _, d.Streams = checkStreams(ctx, js, cfg.Replicas, cfg.initCommand()); d.Streams != nil {
		return
	}
	before := time.Now()
	stream, err := js.Stream(ctx, journalStream)
	if err != nil {
		d.Streams = fmt.Errorf("cannot read stream %s: %w", journalStream, err)
		return
	}
	after, info := time.Now(), stream.CachedInfo()
	if !info.TimeStamp.IsZero() {
		d.ClockAhead = info.TimeStamp.Sub(before.Add(after.Sub(before) / 2))
	}
	d.Copies = info.Config.Replicas
	if c := info.Cluster; c != nil {
		if c.Leader == "" {
			d.Behind = append(d.Behind, "nobody leads the stream")
		}
		for _, r := range c.Replicas {
			if r.Offline {
				d.Behind = append(d.Behind, r.Name+" is offline")
			} else if !r.Current {
				d.Behind = append(d.Behind, r.Name+" is not current")
			}
		}
	}
}

// readLast reads the newest message of the journal as a node reads all of them.
func readLast(ctx context.Context, js jetstream.JetStream) error {
	ctx, cancel := context.WithTimeout(ctx, followRequestTimeout)
	defer cancel()
	consumer, err := js.CreateConsumer(ctx, journalStream, jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckNonePolicy, DeliverPolicy: jetstream.DeliverLastPolicy,
		MemoryStorage: true, Replicas: 1, MaxDeliver: 1, InactiveThreshold: probeConsumerLife,
	})
	if err != nil {
		return fmt.Errorf("cannot create a consumer of the journal: %w", err)
	}
	if consumer.CachedInfo().NumPending == 0 {
		return nil // nothing was ever stored
	}
	batch, err := consumer.Fetch(1, jetstream.FetchMaxWait(followRequestTimeout))
	if err != nil {
		return fmt.Errorf("cannot read the journal: %w", err)
	}
	for range batch.Messages() {
		return nil
	}
	return fmt.Errorf("cannot read the journal: %w", errors.Join(batch.Error(), errors.New("no message came")))
}

// tryRights does what a node does, but for its effect.
func (d *Diagnosis) tryRights(ctx context.Context, nc *nats.Conn, cfg Config) {
	for _, subject := range append(append([]string{}, fastSubjects...), sessionsSubject, nodesSubject, drillSubject) {
		if sub, err := nc.SubscribeSync(subject); err == nil {
			defer sub.Unsubscribe()
		}
	}
	boot := ulid.Make().String()
	for _, subject := range []string{
		revoke.NodeSubject(cfg.Node, boot),
		receiptPrefix + boot + "." + cfg.Node + "." + boot,
	} {
		msg := nats.NewMsg(subject)
		msg.Header.Set(jetstream.ExpectedStreamHeader, probeStream)
		// Refused rights get no answer, and are noted by the connection.
		ctx, cancel := context.WithTimeout(ctx, publishRetry)
		_, _ = nc.RequestMsgWithContext(ctx, msg)
		cancel()
	}
}

// StateDirReport is what a state directory looks like from outside.
type StateDirReport struct {
	Exists bool
	// Holder is the process that uses the directory; Held is true even where its number is not known.
	Holder int
	Held   bool
	// Problems are what would keep a node from starting here, or lets others read what is secret.
	Problems []string
}

// InspectStateDir looks at a state directory without creating, locking or changing anything.
func InspectStateDir(path string) StateDirReport {
	var r StateDirReport
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r
	}
	r.Exists = true
	bad := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	switch {
	case err != nil:
		bad("cannot look at it: %v", err)
		return r
	case !info.IsDir():
		bad("it is not a directory")
		return r
	case info.Mode().Perm()&0o022 != 0:
		bad("it is writable by other users (mode %04o): chmod 700", info.Mode().Perm())
	}
	r.Holder, r.Held = lockHolder(path)
	for _, name := range []string{natsURLFile, listenerFile} {
		if f, err := os.Stat(filepath.Join(path, name)); err == nil && f.Mode().Perm()&0o077 != 0 {
			bad("%s holds a token and is open to other users (mode %04o): chmod 600", name, f.Mode().Perm())
		}
	}
	return r
}
