package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

const (
	defaultQueue = 8192
	// maxBatch is the most records per write; with records of half a kilobyte, 256 KiB.
	maxBatch = 512
	// syncInterval is the longest time that a written record may stay unsynced.
	syncInterval = time.Second
	// logInterval is the shortest time between two complaints about the same thing.
	logInterval = 10 * time.Second
)

// Config is what a trail needs to know.
type Config struct {
	// Path is the file; it is created with mode 0600. Its directory must exist.
	Path string
	// Node and Boot are put into every record.
	Node, Boot string
	// Queue is the most records that wait to be written. Default: 8192.
	Queue int
	// Logger is told of records that were dropped and writes that failed; nil means nobody.
	Logger *slog.Logger
	// Metrics is where the counters are registered; nil means a set of its own.
	Metrics *metrics.Set
}

// Trail is an open audit file. Its methods may be called from any goroutine.
type Trail struct {
	cfg     Config
	queue   chan Record
	reopen  chan chan error
	closing chan struct{}
	done    chan struct{}
	// mu makes Close wait for the Records that are being queued.
	mu     sync.RWMutex
	closed bool

	dropped      atomic.Uint64 // since the last gap record
	records      *metrics.Counter
	droppedTotal *metrics.Counter
	errorsTotal  *metrics.Counter

	// The writer's own.
	file    file
	buf     []byte
	dirty   bool
	partial bool // the file ends in the middle of a line
	lastLog time.Time
}

// file is what the writer needs of an *os.File.
type file interface {
	io.WriteCloser
	Sync() error
}

// Open opens or creates the file and starts to write.
func Open(cfg Config) (*Trail, error) {
	cfg = withDefaults(cfg)
	f, partial, err := openFile(cfg.Path)
	if err != nil {
		return nil, err
	}
	t := newTrail(cfg, f)
	t.partial = partial
	go t.run()
	return t, nil
}

func withDefaults(cfg Config) Config {
	if cfg.Queue <= 0 {
		cfg.Queue = defaultQueue
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = metrics.NewSet()
	}
	return cfg
}

func newTrail(cfg Config, f file) *Trail {
	return &Trail{
		cfg:          cfg,
		queue:        make(chan Record, cfg.Queue),
		reopen:       make(chan chan error),
		closing:      make(chan struct{}),
		done:         make(chan struct{}),
		file:         f,
		records:      cfg.Metrics.NewCounter("pgedge_audit_records_total"),
		droppedTotal: cfg.Metrics.NewCounter("pgedge_audit_dropped_total"),
		errorsTotal:  cfg.Metrics.NewCounter("pgedge_audit_errors_total"),
	}
}

// openFile also tells whether the file ends in the middle of a line, which is what a crash leaves behind.
func openFile(path string) (f *os.File, partial bool, err error) {
	f, err = os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, fmt.Errorf("cannot open audit file: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, false, fmt.Errorf("cannot stat audit file: %w", err)
	}
	if st.Mode().IsRegular() && st.Size() > 0 {
		var last [1]byte
		if _, err := f.ReadAt(last[:], st.Size()-1); err != nil {
			f.Close()
			return nil, false, fmt.Errorf("cannot read audit file: %w", err)
		}
		partial = last[0] != '\n'
	}
	return f, partial, nil
}

// Record queues a record. It never blocks: when the queue is full, the record is dropped and counted. After Close
// it does nothing.
func (t *Trail) Record(r Record) {
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	r.Node, r.Boot = t.cfg.Node, t.cfg.Boot
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.closed {
		return
	}
	select {
	case t.queue <- r:
	default:
		t.dropped.Add(1)
		t.droppedTotal.Inc()
	}
}

// Reopen closes the file and opens its path again, so that a rotated file is let go. When that fails, the old file
// stays in use.
func (t *Trail) Reopen(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case t.reopen <- answer:
	case <-t.done:
		return errors.New("cannot reopen audit file: it is closed")
	case <-ctx.Done():
		return fmt.Errorf("cannot reopen audit file: %w", ctx.Err())
	}
	return <-answer
}

// Close writes and syncs what is queued, and closes the file. It returns early, leaving the writer behind, when ctx
// ends: a disk that hangs must not hang the end of the process.
func (t *Trail) Close(ctx context.Context) error {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.closing)
	}
	t.mu.Unlock()
	select {
	case <-t.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("cannot finish audit file: %w", ctx.Err())
	}
}
