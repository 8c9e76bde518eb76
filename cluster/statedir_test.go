package cluster

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
)

func TestStateDirectoryIsPrivateAndItsURLWorksForAnyClient(t *testing.T) {
	cfg := testConfig(t, "a")
	n := startNode(t, cfg, newFakeEngine())
	for path, want := range map[string]os.FileMode{".": 0o700, "nats-url": 0o600, "nats-listener": 0o600, "boot": 0o600, "lock": 0o600, "jetstream": 0o700} {
		info, err := os.Stat(filepath.Join(cfg.StateDir, path))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %04o, want %04o", path, got, want)
		}
	}
	b, err := os.ReadFile(filepath.Join(cfg.StateDir, "nats-url"))
	if err != nil {
		t.Fatal(err)
	}
	line, rest, found := strings.Cut(string(b), "\n")
	if !found || rest != "" {
		t.Fatalf("nats-url is not one line: %q", b)
	}
	if line != n.URL() {
		t.Errorf("nats-url is %q, the node says %q", line, n.URL())
	}
	nc := rawConn(t, line)
	if _, err := nc.RTT(); err != nil {
		t.Error(err)
	}
	token := strings.TrimPrefix(line[:strings.Index(line, "@")], "nats://")
	if len(token) != 64 {
		t.Errorf("the token has %d characters, want 64", len(token))
	}

	if !n.srv.srv.JetStreamConfig().SyncAlways {
		t.Error("the journal is not synced on every write")
	}

	closeNode(t, n)
	for _, gone := range []string{"nats-url", "boot"} {
		if _, err := os.Stat(filepath.Join(cfg.StateDir, gone)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there after a clean stop", gone)
		}
	}
}

func TestListenerRefusesClientsWithoutTheToken(t *testing.T) {
	n := startNode(t, testConfig(t, "a"), newFakeEngine())
	_, hostport, _ := strings.Cut(n.URL(), "@")
	c, err := Dial(context.Background(), DialOptions{URL: "nats://" + hostport})
	if err == nil {
		c.Close()
		t.Fatal("connected without a token")
	}
	if !strings.Contains(err.Error(), "Authorization") {
		t.Errorf("the error does not say why: %v", err)
	}
}

func TestSecondProcessIsToldWhoUsesTheStateDirectory(t *testing.T) {
	cfg := testConfig(t, "a")
	cmd, _ := startChild(t, cfg.StateDir)
	_, err := Start(testContext(t), cfg, newFakeEngine())
	var locked *LockedError
	if !errors.As(err, &locked) {
		t.Fatalf("got error %v, want LockedError", err)
	}
	if locked.PID != cmd.Process.Pid {
		t.Errorf("the error names process %d, want %d", locked.PID, cmd.Process.Pid)
	}
}

func TestStateDirectoryThatOthersCanWriteIsRefused(t *testing.T) {
	cfg := testConfig(t, "a")
	if err := os.Mkdir(cfg.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(cfg.StateDir, 0o777); err != nil {
		t.Fatal(err)
	}
	_, err := Start(testContext(t), cfg, newFakeEngine())
	if err == nil || !strings.Contains(err.Error(), "writable by other users") {
		t.Errorf("got error %v", err)
	}
}

func TestBootIsYoungerThanThePreviousOneEvenIfTheClockWasSetBack(t *testing.T) {
	future := ulid.MustNew(ulid.Now()+3_600_000, ulid.DefaultEntropy())
	boot := newBoot(&bootRecord{bootID: bootID{"a", future.String()}})
	if boot <= future.String() {
		t.Errorf("boot %s is not younger than %s", boot, future)
	}
}

func TestDialSaysWhatWasLookedForAndWhatToDo(t *testing.T) {
	empty := t.TempDir()
	_, err := Dial(context.Background(), DialOptions{StateDir: empty})
	if err == nil {
		t.Fatal("connected to nothing")
	}
	for _, want := range []string{"no node is running here", filepath.Join(empty, "nats-url"), "pgedge serve", "--nats"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}

	cfg := testConfig(t, "a")
	cmd, _ := startChild(t, cfg.StateDir)
	cmd.Process.Kill()
	cmd.Wait()
	_, err = Dial(context.Background(), DialOptions{StateDir: cfg.StateDir})
	if err == nil || !strings.Contains(err.Error(), "has ended without removing") {
		t.Errorf("after a kill the error is %v", err)
	}
}

func TestConfigReportsEveryProblemAtOnce(t *testing.T) {
	err := Config{Node: "a.b", Boot: "x", NATS: "http://secret@h", OnStale: "hope", Heartbeat: 1, Replicas: 9}.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"node:", "boot:", "state_dir:", "heartbeat:", "cluster.on_stale:", "replicas:", "cluster.nats:"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("the error repeats a secret: %v", err)
	}
	if err := (Config{Node: "a", StateDir: "/x", Listen: "0.0.0.0:4222"}).Validate(); err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("a public listener: %v", err)
	}
}
