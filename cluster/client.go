package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	defaultDialTimeout   = 5 * time.Second
	defaultVerifyTimeout = 10 * time.Second
	defaultQueryTimeout  = 2 * time.Second
)

// DialOptions say where the cluster is.
type DialOptions struct {
	// URL is one NATS URL or several separated by commas. It wins over StateDir.
	URL string
	// Credentials say who this is towards an external NATS.
	Credentials
	// Domain is the JetStream domain to look in. Default: that of the server.
	Domain string
	// InboxPrefix is where answers arrive. Default: the first of the shipped permission sets' that the user may use.
	InboxPrefix string
	// StateDir is the state directory of an embedded node on this machine; its nats-url file says where the node is.
	StateDir string
	// Timeout bounds the connection and the first look at the streams. Default: 5s.
	Timeout time.Duration
	// PublishFirst is for a client that is there to revoke: while the streams elect a leader, and so cannot be read, Dial
	// returns all the same, because the nodes hear a revocation on the fast path meanwhile. What needs the journal waits
	// for it.
	PublishFirst bool
	// VerifyTimeout is how long the nodes try to see backends gone, as they are configured. Default: 10s.
	VerifyTimeout time.Duration
	// QueryTimeout is how long nodes have to answer a fleet query. Default: 2s.
	QueryTimeout time.Duration
	// Logger receives what a person would not see otherwise. Default: nothing is logged.
	Logger *slog.Logger
}

// Client is the command line's view of a cluster: it publishes facts, proves them stored, and collects evidence. Its
// methods may be called from several goroutines.
type Client struct {
	opts     DialOptions
	log      *slog.Logger
	nc       *nats.Conn
	js       jetstream.JetStream
	rights   *rights
	streamID string
	// replaced says that the journal is another stream than streamID now.
	replaced atomic.Bool

	cancel context.CancelFunc
	work   sync.WaitGroup

	journal  *follower
	view     *journalView
	evidence *follower
	inboxes  *inboxes

	closeOnce sync.Once
}

// Dial connects to a cluster and begins to follow its journal and its receipts, so that nothing that happens from
// here on is missed. Errors say what was looked for and what to do.
func Dial(ctx context.Context, opts DialOptions) (*Client, error) {
	if opts.Timeout <= 0 {
		opts.Timeout = defaultDialTimeout
	}
	if opts.VerifyTimeout <= 0 {
		opts.VerifyTimeout = defaultVerifyTimeout
	}
	if opts.QueryTimeout <= 0 {
		opts.QueryTimeout = defaultQueryTimeout
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithTimeout(ctx, opts.Timeout)
	defer cancel()
	urls, err := resolveURL(opts)
	if err != nil {
		return nil, err
	}
	c := &Client{opts: opts, log: opts.Logger, view: newJournalView(), inboxes: newInboxes(), rights: newRights("")}
	if err := c.connect(ctx, urls); err != nil {
		return nil, err
	}
	bound, unbind := c.rights.bind(ctx)
	defer unbind()
	if err := c.follow(bound); err != nil {
		c.Close()
		return nil, c.rights.explain(err)
	}
	return c, nil
}

// resolveURL finds the cluster's address.
func resolveURL(opts DialOptions) (string, error) {
	if opts.URL != "" {
		if err := validateURLs(opts.URL); err != nil {
			return "", fmt.Errorf("--nats: %w", err)
		}
		return opts.URL, nil
	}
	if opts.StateDir == "" {
		return "", errors.New("neither a NATS URL nor a state directory is given: use --nats or --state-dir")
	}
	path := filepath.Join(opts.StateDir, natsURLFile)
	b, err := readSmallFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if pid, held := lockHolder(opts.StateDir); held {
			return "", fmt.Errorf("process %d uses %s but runs no NATS server of its own: give the address of its NATS with --nats (%s is not there)", pid, opts.StateDir, path)
		}
		return "", fmt.Errorf("no node is running here: %s does not exist; start one with pgedge serve, or give --nats", path)
	case errors.Is(err, fs.ErrPermission):
		return "", fmt.Errorf("cannot read %s: it belongs to the user that runs the node; run this command as that user, or give --nats", path)
	case err != nil:
		return "", fmt.Errorf("cannot read %s: %w", path, err)
	}
	urls := strings.TrimSpace(string(b))
	if err := validateURLs(urls); err != nil {
		return "", fmt.Errorf("%s is damaged: restart the node, or give --nats", path)
	}
	return urls, nil
}

func (c *Client) connect(ctx context.Context, urls string) error {
	c.journal = &follower{
		stream: journalStream, log: c.log,
		from:    func() uint64 { return 0 },
		reset:   c.onJournalStart,
		message: c.view.onMessage,
		doubt:   make(chan string, 1),
	}
	c.evidence = &follower{
		stream: receiptStream, log: c.log,
		from:    c.inboxes.from,
		reset:   func(followStart) error { return nil },
		message: c.inboxes.onMessage,
		doubt:   make(chan string, 1),
	}
	c.view.onPresence = c.inboxes.onPresence
	var err error
	if c.nc, c.js, err = connectClient(ctx, urls, c.opts, c.rights, connHooks{
		disconnected: func(err error) { c.log.Warn("lost the connection to NATS", "error", err) },
		reconnected:  func() { c.startOver("the connection was lost") },
		asyncError: func(_ *nats.Subscription, err error) {
			c.log.Warn("NATS reports an error", "error", err)
			if errors.Is(err, nats.ErrSlowConsumer) {
				c.startOver("messages were dropped")
			}
		},
	}); err != nil {
		return err
	}
	c.journal.js, c.evidence.js = c.js, c.js
	return nil
}

// connectClient connects as opts say. Missing rights go to r.
func connectClient(ctx context.Context, urls string, opts DialOptions, r *rights, hooks connHooks) (*nats.Conn, jetstream.JetStream, error) {
	// Until the inbox is settled a refusal is an answer, not an error.
	var settled atomic.Bool
	hear := hooks.asyncError
	hooks.asyncError = func(sub *nats.Subscription, err error) {
		if !settled.Load() {
			return
		}
		r.note(err)
		hear(sub, err)
	}
	options := connOptions("pgedge client", hooks)
	if deadline, ok := ctx.Deadline(); ok {
		options = append(options, nats.Timeout(time.Until(deadline)))
	}
	credentials, err := opts.Credentials.options()
	if err != nil {
		return nil, nil, err
	}
	options = append(options, credentials...)
	prefixes := commandLineInboxes
	if opts.InboxPrefix != "" {
		prefixes = []string{opts.InboxPrefix}
	}
	nc, err := connectWithInbox(prefixes, func(prefix string) (*nats.Conn, error) {
		nc, err := nats.Connect(urls, append(slices.Clone(options), nats.CustomInboxPrefix(prefix))...)
		if err != nil {
			return nil, explainConnect(opts, urls, err)
		}
		return nc, nil
	})
	if err != nil {
		if missing := r.note(err); missing != nil {
			return nil, nil, missing
		}
		return nil, nil, err
	}
	settled.Store(true)
	js, err := newJetStream(nc, opts.Domain)
	if err != nil {
		nc.Close()
		return nil, nil, fmt.Errorf("cannot use JetStream: %w", err)
	}
	return nc, js, nil
}

func newJetStream(nc *nats.Conn, domain string) (jetstream.JetStream, error) {
	if domain != "" {
		return jetstream.NewWithDomain(nc, domain, jetstream.WithDefaultTimeout(followRequestTimeout))
	}
	return jetstream.New(nc, jetstream.WithDefaultTimeout(followRequestTimeout))
}

// explainConnect tells a node that is not running from a server that does not answer.
func explainConnect(opts DialOptions, urls string, err error) error {
	if opts.URL != "" {
		return fmt.Errorf("cannot connect to NATS at %s: %w", redactURLs(urls), err)
	}
	if pid, held := lockHolder(opts.StateDir); held {
		return fmt.Errorf("cannot connect to the node that uses %s (process %d) at %s: %w", opts.StateDir, pid, redactURLs(urls), err)
	}
	return fmt.Errorf("no node is running here: the one that used %s has ended without removing its nats-url; start one with pgedge serve, or give --nats", opts.StateDir)
}

func (c *Client) onJournalStart(start followStart) error {
	if id := streamIdentity(start.Stream, ""); id != c.streamID {
		c.replaced.Store(true)
		return fmt.Errorf("%w: was %s, is %s", ErrJournalReplaced, c.streamID, id)
	}
	c.view.begin(start.Stream.TimeStamp, start.Pending)
	return nil
}

func (c *Client) startOver(reason string) {
	c.journal.restart(reason)
	c.evidence.restart(reason)
}

// Close ends the connection. Publications that are being waited for end with an error.
func (c *Client) Close() {
	c.closeOnce.Do(func() {
		if c.cancel != nil {
			c.cancel()
		}
		c.work.Wait()
		c.nc.Close()
	})
}
