package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// Limits of the server. A scrape takes milliseconds; what takes longer is a peer that does not read or write.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second
	writeTimeout      = 30 * time.Second
	idleTimeout       = 90 * time.Second
	maxHeaderBytes    = 16 << 10
	// maxConnections bounds descriptors; a waiting connection stays in the listen backlog.
	maxConnections = 64
)

// Config is what a server needs to know.
type Config struct {
	// Listen is the host:port to listen on.
	Listen string
	// Ready returns nil when the node may be sent clients, else the reason why not. Required.
	Ready func() error
	// Sets are written to /metrics, in this order, before the metrics of the process.
	Sets []*metrics.Set
	// Logger receives what goes wrong in a connection; nil means nobody.
	Logger *slog.Logger
}

// Server serves HTTP from Start until Close.
type Server struct {
	cfg      Config
	http     *http.Server
	listener net.Listener
	done     chan struct{}
}

// New returns a server that does not listen yet.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, done: make(chan struct{})}
	s.http = &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	return s
}

// Start listens and serves. It returns once the address is taken.
func (s *Server) Start() error {
	l, err := net.Listen("tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("cannot open the admin listener (health and metrics): %w", err)
	}
	s.listener = limitListener(l, maxConnections)
	go func() {
		defer close(s.done)
		if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			s.cfg.Logger.Error("HTTP server stopped", "error", err)
		}
	}()
	return nil
}

// Addr is the address listened on; nil before Start.
func (s *Server) Addr() net.Addr {
	if s.listener == nil {
		return nil
	}
	return s.listener.Addr()
}

// Close stops listening and waits for running requests until ctx ends; then it cuts them off.
func (s *Server) Close(ctx context.Context) error {
	if s.listener == nil {
		return nil
	}
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.http.Close()
		err = fmt.Errorf("cannot finish HTTP requests: %w", err)
	}
	<-s.done
	return err
}
