package audit

import "time"

// run is the only goroutine that touches the file.
func (t *Trail) run() {
	defer close(t.done)
	tick := time.NewTicker(syncInterval)
	defer tick.Stop()
	for {
		select {
		case r := <-t.queue:
			t.writeFrom(r)
		case <-tick.C:
			t.writeGap()
			t.sync()
		case answer := <-t.reopen:
			answer <- t.reopenFile()
		case <-t.closing:
			t.finish()
			return
		}
	}
}

// finish empties the queue; nothing is added any more.
func (t *Trail) finish() {
	for {
		select {
		case r := <-t.queue:
			t.writeFrom(r)
			continue
		default:
		}
		break
	}
	t.writeGap()
	t.sync()
	if err := t.file.Close(); err != nil {
		t.failed("cannot close audit file", err)
	}
}

// writeFrom writes r and what is queued behind it, in one write.
func (t *Trail) writeFrom(r Record) {
	t.begin()
	n, urgent := 0, false
	for {
		t.buf = r.appendLine(t.buf)
		urgent = urgent || r.Kind == KindRevocation
		if n++; n == maxBatch {
			break
		}
		select {
		case r = <-t.queue:
			continue
		default:
		}
		break
	}
	t.flush(n)
	if urgent {
		t.sync()
	}
}

// begin starts a batch: with the end of a line that an earlier write left open, and with the gap before it.
func (t *Trail) begin() {
	t.buf = t.buf[:0]
	if t.partial {
		t.buf = append(t.buf, '\n')
	}
	if n := t.dropped.Swap(0); n > 0 {
		gap := Record{Time: time.Now(), Kind: KindGap, Node: t.cfg.Node, Boot: t.cfg.Boot, Missing: n}
		t.buf = gap.appendLine(t.buf)
		t.cfg.Logger.Error("audit records were lost", "records", n)
	}
}

// writeGap tells of lost records when nothing else comes to be written.
func (t *Trail) writeGap() {
	if t.dropped.Load() == 0 {
		return
	}
	t.begin()
	t.flush(0)
}

// flush writes the batch. Records that could not be written are lost: keeping them would only move the loss to
// those that come next, and a full disk may stay full. They count as dropped and are told by the next gap.
func (t *Trail) flush(records int) {
	n, err := t.file.Write(t.buf)
	if n > 0 {
		t.dirty = true
		t.partial = t.buf[n-1] != '\n'
	}
	if err != nil {
		lost := uint64(countLines(t.buf[n:]))
		t.dropped.Add(lost)
		t.droppedTotal.Add(int(lost))
		t.failed("cannot write audit records", err)
		records = max(0, records-int(lost))
	}
	t.records.Add(records)
}

func countLines(b []byte) int {
	n := 0
	for _, c := range b {
		if c == '\n' {
			n++
		}
	}
	return n
}

func (t *Trail) sync() {
	if !t.dirty {
		return
	}
	t.dirty = false
	if err := t.file.Sync(); err != nil {
		t.failed("cannot sync audit file", err)
	}
}

func (t *Trail) reopenFile() error {
	f, partial, err := openFile(t.cfg.Path)
	if err != nil {
		t.failed("cannot reopen audit file", err)
		return err
	}
	t.sync()
	if err := t.file.Close(); err != nil {
		t.failed("cannot close audit file", err)
	}
	t.file, t.partial = f, partial
	return nil
}

// failed counts every failure and logs one per interval: a full disk fails with each batch.
func (t *Trail) failed(what string, err error) {
	t.errorsTotal.Inc()
	if now := time.Now(); now.Sub(t.lastLog) >= logInterval {
		t.lastLog = now
		t.cfg.Logger.Error(what, "path", t.cfg.Path, "error", err)
	}
}
