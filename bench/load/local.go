package load

import (
	"context"
	"time"
)

// local is a part in this process.
type local struct {
	*loop
	spec   Spec
	result chan error
}

func newLocal(spec Spec, onOpen, onEnd func(int)) (*local, error) {
	to, err := places(spec.Addrs)
	if err != nil {
		return nil, err
	}
	l, err := newLoop(spec.Count, max(minSources, spec.total()/perSource))
	if err != nil {
		return nil, err
	}
	l.database, l.places, l.users = spec.Database, to, spec.Users
	p := &local{loop: l, spec: spec, result: make(chan error, 1)}
	user, before := 0, 0 // of the session that logs in next; they come in order
	l.logins = logins{total: spec.Count, most: spec.Logins, began: monotonic(), timeout: spec.Timeout, who: func(k int) (int, int) {
		k += spec.First
		for k >= before+spec.Users[user].Sessions {
			before += spec.Users[user].Sessions
			user++
		}
		return user, k % len(to)
	}}
	l.onOpen, l.onEnd = onOpen, onEnd
	l.settled = func(err error) { p.result <- err }
	here.Add(int64(spec.Count))
	go l.run()
	l.post(func() {})
	return p, nil
}

func (p *local) opened(ctx context.Context) error {
	select {
	case err := <-p.result:
		return err
	case <-ctx.Done():
		return ctxErr(ctx, "the logins were called off")
	}
}

func (p *local) size() int { return p.spec.Count }

func (p *local) ask(rate float64) error { return p.do(func() { p.loop.ask(rate) }) }

func (p *local) take() (w Window, err error) {
	err = p.do(func() { w = p.loop.take() })
	return w, err
}

func (p *local) send(sql string, read bool) error {
	st := stateAsleep
	if read {
		st = stateBusy
	}
	statement := query(sql)
	return p.do(func() {
		for i := range p.slots {
			if p.slots[i].state == stateIdle {
				p.loop.send(i, statement, st)
			}
		}
	})
}

func (p *local) wakeUp() error {
	return p.do(func() {
		for i := range p.slots {
			if p.slots[i].state == stateAsleep {
				p.slots[i].state = stateBusy
				p.read(i, true)
			}
		}
	})
}

func (p *local) running() (n int, failed string, err error) {
	err = p.do(func() {
		for i := range p.slots {
			s := &p.slots[i]
			switch s.state {
			case stateBusy, stateAsleep:
				n++
			case stateIdle:
				if s.wrong && s.last != nil {
					failed = s.last.Error()
				}
			case stateClosed, stateConnecting, stateGreeting, stateAsking:
			}
		}
	})
	return n, failed, err
}

func (p *local) ends() (ends []End, err error) {
	err = p.do(func() {
		wall, mono := time.Now(), monotonic()
		for i := range p.slots {
			s := &p.slots[i]
			if s.how == stillOpen {
				continue
			}
			e := End{Session: p.spec.First + i, User: p.users[s.user].Name, Addr: p.places[s.place].addr, How: howNames[s.how],
				Mono: s.endedAt, At: wall.Add(time.Duration(s.endedAt - mono)).Round(0)}
			if s.last != nil {
				e.Code, e.Text, e.ErrorMono = s.last.code, s.last.text, s.lastAt
			}
			ends = append(ends, e)
		}
	})
	return ends, err
}

func (p *local) close() error {
	p.loop.close()
	here.Add(-int64(p.spec.Count))
	return nil
}
