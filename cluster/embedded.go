package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	embeddedStartTimeout = 10 * time.Second
	embeddedMaxConns     = 1024
	embeddedMaxMemory    = 64 << 20
	// embeddedMaxStore is above any disk: what bounds the journal is its own compaction, and what bounds the
	// receipts is receiptMaxBytes. A limit derived from the free space would shrink with it and refuse revocations.
	embeddedMaxStore = 1 << 40
)

// embeddedServer is the NATS server in the process: JetStream on disk, synced on every write, and a loopback listener
// behind a token for the command line and other tools.
type embeddedServer struct {
	srv    *server.Server
	logger *serverLogger
	home   string // the directory that holds journalDir
	token  string
	url    string // nats://TOKEN@host:port
	port   int
	js     server.JetStreamConfig
}

// startEmbedded starts the server as whoever has joined knows it: with the token it had before and, unless a port is
// configured, on the port it had before if that is still free.
func startEmbedded(cfg Config, dir *stateDir) (*embeddedServer, error) {
	before, err := dir.listener()
	if err != nil {
		return nil, err
	}
	token := newToken()
	if before != nil {
		token = before.Token
		cfg.Listen = portAgain(cfg.Listen, before.Port)
	}
	e, err := startEmbeddedWithToken(cfg, dir.path, token)
	if err != nil {
		return nil, err
	}
	if now := (listenerRecord{Token: token, Port: e.port}); before == nil || now != *before {
		if err := dir.recordListener(now); err != nil {
			e.stop()
			return nil, err
		}
	}
	return e, nil
}

// portAgain puts a port into an address that leaves it open, unless somebody else listens there.
func portAgain(listen string, port int) string {
	host, open, err := net.SplitHostPort(listen)
	if err != nil || open != "0" || port == 0 {
		return listen
	}
	again := net.JoinHostPort(host, strconv.Itoa(port))
	probe, err := net.Listen("tcp", again)
	if err != nil {
		return listen
	}
	probe.Close()
	return again
}

func startEmbeddedWithToken(cfg Config, stateDir, token string) (*embeddedServer, error) {
	host, portText, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("cannot parse cluster.listen: %w", err)
	}
	port, err := net.LookupPort("tcp", portText)
	if err != nil {
		return nil, fmt.Errorf("cannot parse cluster.listen: %w", err)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	home, err := journalHome(cfg, stateDir)
	if err != nil {
		return nil, err
	}
	opts := &server.Options{
		ServerName:             cfg.Node,
		Host:                   host,
		Port:                   port,
		Authorization:          token,
		MaxConn:                embeddedMaxConns,
		JetStream:              true,
		StoreDir:               home, // The server makes journalDir in it.
		JetStreamMaxMemory:     embeddedMaxMemory,
		JetStreamMaxStore:      embeddedMaxStore,
		SyncAlways:             true,
		NoSigs:                 true,
		NoLog:                  true, // The logger below takes its place.
		DisableJetStreamBanner: true,
	}
	if cfg.Routes.enabled() {
		if err := cfg.Routes.apply(opts); err != nil {
			return nil, err
		}
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("cannot set up embedded NATS server: %w", err)
	}
	logger := &serverLogger{log: cfg.Logger}
	srv.SetLoggerV2(logger, false, false, false)
	srv.Start()
	e := &embeddedServer{srv: srv, logger: logger, home: home, token: token}
	if !srv.ReadyForConnections(embeddedStartTimeout) {
		e.stop()
		return nil, fmt.Errorf("cannot start embedded NATS server on %s%s", cfg.Listen, logger.because())
	}
	if !srv.JetStreamEnabled() {
		e.stop()
		return nil, fmt.Errorf("cannot open the journal in %s%s", home, logger.because())
	}
	e.js = *srv.JetStreamConfig()
	addr, ok := srv.Addr().(*net.TCPAddr)
	if !ok {
		e.stop()
		return nil, fmt.Errorf("cannot read the address of the embedded NATS server: got %v", srv.Addr())
	}
	e.port = addr.Port
	e.url = (&url.URL{
		Scheme: "nats",
		User:   url.User(token),
		Host:   net.JoinHostPort(addr.IP.String(), strconv.Itoa(addr.Port)),
	}).String()
	return e, nil
}

// revive closes the journal and opens it again. After a write error, a full disk for one, the store refuses every
// further write until it has been opened anew, even when there is room again.
func (e *embeddedServer) revive() error {
	if err := e.srv.ShutdownJetStream(); err != nil {
		return fmt.Errorf("cannot close the journal: %w", err)
	}
	cfg := e.js
	cfg.StoreDir = e.home // EnableJetStream appends journalDir again.
	if err := e.srv.EnableJetStream(&cfg); err != nil {
		return fmt.Errorf("cannot open the journal: %w", err)
	}
	return nil
}

// stop ends the server and returns when its files are closed.
func (e *embeddedServer) stop() {
	e.srv.Shutdown()
	e.srv.WaitForShutdown()
}

// serverLogger passes the server's warnings and errors on to slog; the rest is noise in a proxy's log.
type serverLogger struct {
	log *slog.Logger

	repeats repeatLimit

	mu sync.Mutex
	// lastError is the server's latest error, and failedAt when it came.
	lastError string
	failedAt  time.Time
}

func (l *serverLogger) Noticef(string, ...any) {}
func (l *serverLogger) Debugf(string, ...any)  {}
func (l *serverLogger) Tracef(string, ...any)  {}

func (l *serverLogger) Warnf(format string, v ...any) {
	l.say(slog.LevelWarn, fmt.Sprintf(format, v...))
}

func (l *serverLogger) Errorf(format string, v ...any) {
	l.say(slog.LevelError, fmt.Sprintf(format, v...))
}

// Fatalf must not end the process: the caller of startEmbedded sees that the server is not ready.
func (l *serverLogger) Fatalf(format string, v ...any) { l.Errorf(format, v...) }

func (l *serverLogger) say(level slog.Level, text string) {
	now := time.Now()
	l.mu.Lock()
	if level == slog.LevelError {
		l.lastError, l.failedAt = text, now
	}
	l.mu.Unlock()
	if l.repeats.allow(faultOf(text), now, repeatEvery) {
		l.log.Log(context.Background(), level, "NATS server: "+text)
	}
}

// clientMark stands in the server's messages between the address of a client and what is wrong with it.
const clientMark = " - cid:"

// faultOf leaves out which connection a message is about: one with an outdated token comes again and again under
// another number.
func faultOf(text string) string {
	if !strings.Contains(text, clientMark) {
		return text
	}
	return text[strings.LastIndex(text, " - ")+len(" - "):]
}

// because is the tail of an error message: the last thing the server complained about.
func (l *serverLogger) because() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lastError == "" {
		return ""
	}
	return ": " + strings.TrimSpace(l.lastError)
}

// failedSince reports whether the server has logged an error since an instant.
func (l *serverLogger) failedSince(t time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failedAt.After(t)
}
