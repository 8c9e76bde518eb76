package admin

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metrics"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, cfg Config) (get func(method, path string) (int, string)) {
	t.Helper()
	cfg.Listen = "127.0.0.1:0"
	s := New(cfg)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return func(method, path string) (int, string) {
		req, err := http.NewRequest(method, "http://"+s.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
}

func ready() error { return nil }

func TestReadyzFollowsTheNode(t *testing.T) {
	reason := errors.New("the journal is being replayed")
	state := reason
	get := start(t, Config{Ready: func() error { return state }})
	if code, body := get("GET", "/readyz"); code != 503 || !strings.Contains(body, "the journal is being replayed") {
		t.Errorf("got %d %s", code, body)
	}
	if code, _ := get("GET", "/healthz"); code != 200 {
		t.Errorf("a node that is not ready is still up, got %d", code)
	}
	state = nil
	if code, body := get("GET", "/readyz"); code != 200 || body != "{\"status\":\"ready\"}\n" {
		t.Errorf("got %d %s", code, body)
	}
}

func TestWhatIsNotInTheTableDoesNotExist(t *testing.T) {
	get := start(t, Config{Ready: ready})
	for _, path := range []string{"/", "/metrics/", "/debug/pprof/", "/api/v1/sessions", "/healthz/../x", "//healthz"} {
		if code, body := get("GET", path); code != 404 || body != "{\"error\":\"no such path\"}\n" {
			t.Errorf("%s: got %d %s", path, code, body)
		}
	}
}

func TestNothingCanBeChanged(t *testing.T) {
	get := start(t, Config{Ready: ready})
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS"} {
		if code, _ := get(method, "/readyz"); code != 405 {
			t.Errorf("%s: got %d", method, code)
		}
	}
}

func TestEveryRouteNamesARight(t *testing.T) {
	for _, r := range routes {
		if !held(r.right) {
			t.Errorf("%s names no right", r.path)
		}
	}
	if held(rightNone) {
		t.Error("a row without a right is open")
	}
}

func TestMetricsOfAllSetsAndTheProcess(t *testing.T) {
	a, b := metrics.NewSet(), metrics.NewSet()
	a.NewCounter("pgedge_a_total").Set(1)
	b.NewCounter("pgedge_b_total").Set(2)
	get := start(t, Config{Ready: ready, Sets: []*metrics.Set{a, b}})
	code, body := get("GET", "/metrics")
	for _, want := range []string{"pgedge_a_total 1\n", "pgedge_b_total 2\n", "process_open_fds", "go_goroutines"} {
		if code != 200 || !strings.Contains(body, want) {
			t.Errorf("no %q in %d bytes, code %d", want, len(body), code)
		}
	}
}

func TestATakenAddressIsAnError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := New(Config{Listen: l.Addr().String(), Ready: ready})
	if err := s.Start(); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v", err)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestOneMoreConnectionThanTheLimitWaits(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := limitListener(inner, 1)
	defer l.Close()
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	for range 2 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first := <-accepted
	select {
	case <-accepted:
		t.Error("a second connection was accepted beside the first")
	default:
	}
	if got := len(l.(*limited).slots); got != 1 {
		t.Errorf("%d slots taken", got)
	}
	first.Close()
	second := <-accepted
	// Closing the listener frees the Accept that waits for a slot.
	l.Close()
	if _, open := <-accepted; open {
		t.Error("accepted after Close")
	}
	second.Close()
}
