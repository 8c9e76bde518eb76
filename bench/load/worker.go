package load

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// ChildArg is the first argument with which a program that uses workers is started again. It must then call Child.
const ChildArg = "child-load"

// workerPatience is how long a worker may take to answer a request or to end.
const workerPatience = 30 * time.Second

// request is one line to a worker.
type request struct {
	Op   string  `json:"op"`
	Spec *Spec   `json:"spec,omitempty"`
	Rate float64 `json:"rate,omitempty"`
	SQL  string  `json:"sql,omitempty"`
	Read bool    `json:"read,omitempty"`
}

// reply is one line from a worker: an answer to the request that is out, or news.
type reply struct {
	Open    *int                   `json:"open,omitempty"`
	Ended   *int                   `json:"ended,omitempty"`
	Settled bool                   `json:"settled,omitempty"`
	Error   string                 `json:"error,omitempty"`
	Window  *Window                `json:"window,omitempty"`
	Latency *hdrhistogram.Snapshot `json:"latency,omitempty"`
	Ends    []End                  `json:"ends,omitempty"`
	Running int                    `json:"running,omitempty"`
	Failed  string                 `json:"failed,omitempty"`
}

func (r reply) err() error {
	if r.Error == "" {
		return nil
	}
	return errors.New(r.Error)
}

// worker is a part in a process of its own, seen from the process that started it.
type worker struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	count   int
	settled chan error
	gone    chan struct{} // closed when the process has ended

	mu      sync.Mutex // one request at a time
	replies chan reply
}

func startWorker(spec Spec, onOpen, onEnd func(int)) (*worker, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("load: cannot find the program to start again: %w", err)
	}
	w := &worker{count: spec.Count, settled: make(chan error, 1), gone: make(chan struct{}), replies: make(chan reply, 1)}
	w.cmd = exec.Command(self, ChildArg)
	w.cmd.Stderr = os.Stderr
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err1 := w.cmd.StdinPipe()
	out, err2 := w.cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("load: cannot make a worker's pipes: %w", err)
	}
	w.in = in
	started := make(chan error, 1)
	go w.run(started, out, onOpen, onEnd)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("load: cannot start a worker: %w", err)
	}
	if _, err := w.request(request{Op: "open", Spec: &spec}); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

// run starts the process and reads from it on one locked thread: the signal at the parent's death is tied to the thread
// that forked.
func (w *worker) run(started chan<- error, out io.Reader, onOpen, onEnd func(int)) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := w.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	defer close(w.gone)
	lines := json.NewDecoder(bufio.NewReaderSize(out, readBytes))
	for {
		var r reply
		if lines.Decode(&r) != nil {
			break
		}
		switch {
		case r.Open != nil:
			onOpen(*r.Open)
		case r.Ended != nil:
			onEnd(*r.Ended)
		case r.Settled:
			w.settled <- r.err()
		default:
			w.replies <- r
		}
	}
	// A worker that was told to end says nothing, and one that died has said why on stderr.
	_ = w.cmd.Wait()
}

func (w *worker) request(q request) (reply, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	line, err := json.Marshal(q)
	if err != nil {
		return reply{}, fmt.Errorf("load: cannot write a request: %w", err)
	}
	if _, err := w.in.Write(append(line, '\n')); err != nil {
		return reply{}, fmt.Errorf("load: a worker does not listen: %w", err)
	}
	select {
	case r := <-w.replies:
		return r, r.err()
	case <-w.gone:
		return reply{}, errors.New("load: a worker has ended")
	case <-time.After(workerPatience):
		return reply{}, fmt.Errorf("load: a worker has not answered %q", q.Op)
	}
}

func (w *worker) opened(ctx context.Context) error {
	select {
	case err := <-w.settled:
		return err
	case <-w.gone:
		return errors.New("load: a worker has ended")
	case <-ctx.Done():
		return ctxErr(ctx, "the logins were called off")
	}
}

func (w *worker) size() int { return w.count }

func (w *worker) ask(rate float64) error {
	_, err := w.request(request{Op: "ask", Rate: rate})
	return err
}

func (w *worker) send(sql string, read bool) error {
	_, err := w.request(request{Op: "send", SQL: sql, Read: read})
	return err
}

func (w *worker) wakeUp() error {
	_, err := w.request(request{Op: "wake"})
	return err
}

func (w *worker) running() (int, string, error) {
	r, err := w.request(request{Op: "running"})
	return r.Running, r.Failed, err
}

func (w *worker) take() (Window, error) {
	r, err := w.request(request{Op: "take"})
	if err != nil || r.Window == nil || r.Latency == nil {
		return Window{}, errors.Join(err, r.err())
	}
	r.Window.Latency = hdrhistogram.Import(r.Latency)
	return *r.Window, nil
}

func (w *worker) ends() ([]End, error) {
	r, err := w.request(request{Op: "ends"})
	return r.Ends, err
}

// close ends the worker by the end of its input, and kills one that does not obey.
func (w *worker) close() error {
	w.in.Close()
	select {
	case <-w.gone:
		return nil
	case <-time.After(workerPatience):
	}
	err := w.cmd.Process.Kill()
	<-w.gone
	return errors.Join(errors.New("load: a worker did not end and was killed"), err)
}
