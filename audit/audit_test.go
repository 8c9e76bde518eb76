package audit

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func readAll(t *testing.T, path string) []Record {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, string(b))
}

func parse(t *testing.T, s string) []Record {
	t.Helper()
	var out []Record
	lines := bufio.NewScanner(strings.NewReader(s))
	for lines.Scan() {
		if lines.Text() == "" || strings.HasPrefix(lines.Text(), "{torn") {
			continue
		}
		var r Record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatalf("%v in %q", err, lines.Text())
		}
		out = append(out, r)
	}
	return out
}

func closeTrail(t *testing.T, trail *Trail) {
	t.Helper()
	if err := trail.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestEveryRecordIsOneLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	trail, err := Open(Config{Path: path, Node: "edge-a", Boot: "b1"})
	if err != nil {
		t.Fatal(err)
	}
	trail.Record(Record{Kind: KindLogin, Principal: "alice\n{\"kind\":\"forged\"}", Application: strings.Repeat("x", 5000)})
	trail.Record(Record{Kind: KindEnd, Principal: "bob", BytesIn: 7})
	closeTrail(t, trail)
	trail.Record(Record{Kind: KindEnd}) // after Close: nothing, and no panic
	got := readAll(t, path)
	if len(got) != 2 || got[0].Kind != KindLogin || got[1].BytesIn != 7 || got[0].Schema != Schema || got[0].Node != "edge-a" || got[0].Time.IsZero() {
		t.Fatalf("got %+v", got)
	}
	if n := len(got[0].Application); n > maxTextBytes+3 {
		t.Errorf("an application name of %d bytes was kept", n)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func TestAnOldFileIsContinuedEvenIfItEndsInATornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := os.WriteFile(path, []byte("{torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	trail, err := Open(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	trail.Record(Record{Kind: KindLogin})
	closeTrail(t, trail)
	b, _ := os.ReadFile(path)
	if !strings.HasPrefix(string(b), "{torn\n{") {
		t.Errorf("got %q", b)
	}
}

func TestReopenLetsGoOfARotatedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	trail, err := Open(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	trail.Record(Record{Kind: KindLogin})
	if err := trail.Reopen(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := trail.Reopen(context.Background()); err != nil {
		t.Fatal(err)
	}
	trail.Record(Record{Kind: KindEnd})
	closeTrail(t, trail)
	if old, now := readAll(t, path+".1"), readAll(t, path); len(old) != 1 || len(now) != 1 || now[0].Kind != KindEnd {
		t.Errorf("got %+v and %+v", old, now)
	}
	if err := trail.Reopen(context.Background()); err == nil {
		t.Error("a closed trail was reopened")
	}
}

func TestAPathThatCannotBeOpenedIsAnError(t *testing.T) {
	if _, err := Open(Config{Path: filepath.Join(t.TempDir(), "none", "audit.jsonl")}); err == nil {
		t.Error("opened")
	}
}

// fakeFile is a disk that can hang, fail, or take part of a write.
type fakeFile struct {
	mu      sync.Mutex
	b       []byte
	syncs   int
	hang    chan struct{} // a write waits until it is closed
	started chan struct{} // receives at the start of each write, when not nil
	room    int           // bytes until the disk is full; -1: no limit
}

func (f *fakeFile) Write(b []byte) (int, error) {
	if f.started != nil {
		f.started <- struct{}{}
	}
	if f.hang != nil {
		<-f.hang
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.room >= 0 && len(b) > f.room {
		n := f.room
		f.b = append(f.b, b[:n]...)
		f.room = 0
		return n, errors.New("no space left on device")
	}
	f.b = append(f.b, b...)
	return len(b), nil
}

func (f *fakeFile) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.syncs++
	return nil
}

func (f *fakeFile) syncCount() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.syncs
}

func (f *fakeFile) Close() error { return nil }

func openFake(cfg Config, f *fakeFile) *Trail {
	t := newTrail(withDefaults(cfg), f)
	go t.run()
	return t
}

func TestAHangingDiskNeverBlocksAndTheTrailSaysWhatIsMissing(t *testing.T) {
	f := &fakeFile{hang: make(chan struct{}), started: make(chan struct{}, 100), room: -1}
	trail := openFake(Config{Queue: 4}, f)
	trail.Record(Record{Kind: KindLogin, Session: "first"})
	<-f.started // the writer hangs with the first record in hand
	for i := range 10 {
		trail.Record(Record{Kind: KindLogin, Session: fmt.Sprint(i)})
	}
	if got := trail.droppedTotal.Get(); got != 6 {
		t.Errorf("%d dropped", got)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := trail.Close(ctx); err == nil {
		t.Error("Close waited for a disk that hangs")
	}
	close(f.hang)
	closeTrail(t, trail)
	got := parse(t, string(f.b))
	if len(got) != 6 || got[1].Kind != KindGap || got[1].Missing != 6 || got[5].Session != "3" {
		t.Errorf("got %+v", got)
	}
}

func TestAFullDiskIsToldAsAGapOnceThereIsRoomAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeFile{room: 30}
		trail := openFake(Config{}, f)
		trail.Record(Record{Kind: KindLogin, Session: "lost"})
		synctest.Wait()
		f.mu.Lock()
		f.room = -1
		f.mu.Unlock()
		trail.Record(Record{Kind: KindLogin, Session: "kept"})
		closeTrail(t, trail)
		_, whole, _ := strings.Cut(string(f.b), "\n")
		got := parse(t, whole)
		if len(got) != 2 || got[0].Kind != KindGap || got[0].Missing != 1 || got[1].Session != "kept" {
			t.Errorf("got %q", f.b)
		}
		if trail.errorsTotal.Get() != 1 || trail.droppedTotal.Get() != 1 || trail.records.Get() != 1 {
			t.Errorf("errors %d, dropped %d, records %d", trail.errorsTotal.Get(), trail.droppedTotal.Get(), trail.records.Get())
		}
	})
}

func TestARevocationIsSyncedAtOnceAndTheRestWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeFile{room: -1}
		trail := newTrail(withDefaults(Config{}), f)
		go trail.run()
		trail.Record(Record{Kind: KindLogin})
		synctest.Wait()
		if got := f.syncCount(); got != 0 {
			t.Errorf("%d syncs after a login", got)
		}
		time.Sleep(syncInterval + time.Millisecond) // advances the bubble's clock; nothing waits in real time
		synctest.Wait()
		if got := f.syncCount(); got != 1 {
			t.Errorf("%d syncs after a second", got)
		}
		trail.Record(Record{Kind: KindRevocation})
		synctest.Wait()
		if got := f.syncCount(); got != 2 {
			t.Errorf("%d syncs after a revocation", got)
		}
		closeTrail(t, trail)
	})
}
