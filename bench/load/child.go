package load

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// Child is a worker process: requests come from in, one JSON value a line, answers and news go to out. It ends, with its
// sessions, when in does.
func Child(in io.Reader, out io.Writer) error {
	c := &child{out: json.NewEncoder(out)}
	requests := json.NewDecoder(bufio.NewReader(in))
	for {
		var q request
		if err := requests.Decode(&q); err != nil {
			if c.part != nil {
				c.part.close()
			}
			if err == io.EOF {
				return nil
			}
			return fmt.Errorf("load: a worker cannot read its requests: %w", err)
		}
		r, err := c.answer(q)
		if err != nil {
			r.Error = err.Error()
		}
		if err := c.say(r); err != nil {
			return fmt.Errorf("load: a worker cannot answer: %w", err)
		}
		if q.Op == "open" && err == nil {
			go func() {
				r := reply{Settled: true}
				if err := <-c.part.result; err != nil {
					r.Error = err.Error()
				}
				// A parent that is gone closes our input too.
				_ = c.say(r)
			}()
		}
	}
}

type child struct {
	part *local
	mu   sync.Mutex
	out  *json.Encoder
}

func (c *child) say(r reply) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Encode(r)
}

func (c *child) answer(q request) (r reply, err error) {
	if (c.part == nil) != (q.Op == "open") {
		return r, fmt.Errorf("load: %q out of place", q.Op)
	}
	switch q.Op {
	case "open":
		if q.Spec == nil {
			return r, fmt.Errorf("load: nothing to open")
		}
		c.part, err = newLocal(*q.Spec, func(n int) { _ = c.say(reply{Open: &n}) }, func(n int) { _ = c.say(reply{Ended: &n}) })
	case "ask":
		err = c.part.ask(q.Rate)
	case "send":
		err = c.part.send(q.SQL, q.Read)
	case "wake":
		err = c.part.wakeUp()
	case "running":
		r.Running, r.Failed, err = c.part.running()
	case "take":
		var w Window
		if w, err = c.part.take(); err == nil {
			r.Latency = w.Latency.Export()
			w.Latency = nil
			r.Window = &w
		}
	case "ends":
		r.Ends, err = c.part.ends()
	default:
		err = fmt.Errorf("load: no request %q", q.Op)
	}
	return r, err
}
