// Package pgserver starts real, throwaway PostgreSQL servers. Tests, `pgedge demo` and the benchmarks use it;
// it knows nothing of testing. A server lives in a private directory, listens on a free port of 127.0.0.1 and on
// a unix socket, holds the roles described at Roles, and is gone with its directory after Stop or, at the latest,
// when the process that started it dies.
package pgserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

const (
	startTimeout = 60 * time.Second // from starting `postgres` to the first answered connection
	portAttempts = 5                // a port found free may be taken before Postgres binds it
)

// Options says how a server is set up. The zero value is good for most tests.
type Options struct {
	// MaxConnections is Postgres's max_connections. Default 200.
	MaxConnections int
	// HBA holds pg_hba.conf lines that are put before the standard ones; the first match wins.
	HBA []string
	// Settings are written to postgresql.conf last, so they override everything else.
	Settings map[string]string
	// TLS makes a certificate authority and a certificate for localhost and 127.0.0.1 when the server starts; the
	// authority's certificate is at Server.CAFile. Connections without TLS stay allowed.
	TLS bool
	// Durable keeps fsync on. Default off: the data is thrown away anyway.
	Durable bool
	// Cache keeps the result of initdb under the temporary directory and copies it at the next start, which takes a
	// start from two seconds to a fraction of one. Meant for tests: the cached directory stays behind.
	Cache bool
}

// Server is a running PostgreSQL server. All fields are fixed after New; all methods may be used by any goroutine.
type Server struct {
	Host      string // always 127.0.0.1
	Port      int    // TCP port
	SocketDir string // directory of the unix socket; reachable only by this process's user and the server's
	DataDir   string
	BinDir    string // where postgres, and usually psql, were found
	Superuser string // its password over TCP is Password(Superuser); the unix socket trusts it
	CAFile    string // PEM file of the certificate authority; empty without Options.TLS

	runDir   *runDir
	proc     *process
	stopOnce sync.Once
	stopErr  error
}

// New starts a server and returns once it has answered a query. The context bounds the start only, not the life
// of the server. On error nothing is left behind.
func New(ctx context.Context, o Options) (*Server, error) {
	if o.MaxConnections == 0 {
		o.MaxConnections = 200
	}
	binDir, err := Find()
	if err != nil {
		return nil, err
	}
	who, err := serverUser()
	if err != nil {
		return nil, err
	}
	rd, err := newRunDir(who)
	if err != nil {
		return nil, err
	}
	s := &Server{Host: "127.0.0.1", BinDir: binDir, Superuser: superuser, runDir: rd, SocketDir: rd.path, DataDir: filepath.Join(rd.path, "data")}
	if err := s.start(ctx, o, who); err != nil {
		return nil, errors.Join(err, rd.remove())
	}
	return s, nil
}

func (s *Server) start(ctx context.Context, o Options, who *owner) error {
	if o.Cache {
		if err := copyTemplate(ctx, s.BinDir, who, s.DataDir); err != nil {
			return err
		}
	} else if err := makeCluster(ctx, s.BinDir, who, s.runDir.path, s.DataDir); err != nil {
		return err
	}
	if o.TLS {
		if err := writeCertificates(s.runDir.path, s.DataDir, who); err != nil {
			return err
		}
		s.CAFile = filepath.Join(s.runDir.path, "ca.pem")
	}
	if err := writeHBA(s.DataDir, who, o.HBA); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		port, err := FreePort(s.Host)
		if err != nil {
			return err
		}
		s.Port = port
		if err := writeConf(s, who, o); err != nil {
			return err
		}
		s.proc, err = startPostgres(ctx, s.BinDir, who, s.DataDir, s.ping)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errPortTaken) || attempt == portAttempts {
			return err
		}
	}
}

// ping proves that the server answers queries.
func (s *Server) ping(ctx context.Context) error {
	conn, err := s.Connect(ctx, "postgres")
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return conn.Ping(ctx)
}

// Stop ends the server and removes its directory. It does not wait for clients: the data is thrown away, so it
// asks for Postgres's immediate shutdown. Further calls return the result of the first.
func (s *Server) Stop() error {
	s.stopOnce.Do(func() {
		s.stopErr = errors.Join(s.proc.stop(), s.runDir.remove())
	})
	return s.stopErr
}

// Exited is closed when the postmaster has ended, for whatever reason.
func (s *Server) Exited() <-chan struct{} { return s.proc.exited }

// Log returns the newest part of the server's log, at most 256 KiB.
func (s *Server) Log() string { return s.proc.log.String() }

// Addr returns host:port.
func (s *Server) Addr() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// URL returns a connection URL over TCP. An empty password is left out. It names no sslmode when the server has
// no TLS to offer, so that a client's default applies.
func (s *Server) URL(user, password, db string) string {
	return URL(s.Addr(), user, password, db)
}

// URL returns a postgres:// URL for any address, for example that of a proxy in front of a server.
func URL(addr, user, password, db string) string {
	u := url.URL{Scheme: "postgres", Host: addr, Path: "/" + db, User: url.User(user)}
	if password != "" {
		u.User = url.UserPassword(user, password)
	}
	return u.String()
}

// writeOwned writes a file that only the server's user may read.
func writeOwned(path string, data []byte, who *owner) error {
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("cannot write %s: %w", filepath.Base(path), err)
	}
	return who.own(path)
}
