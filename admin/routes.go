package admin

import (
	"encoding/json"
	"net/http"

	"github.com/VictoriaMetrics/metrics"
)

// right is what a caller must hold to use a route.
type right uint8

const (
	// rightNone is the zero value and is held by nobody: a row that names no right is closed.
	rightNone right = iota
	// rightHealth is held by everybody who reaches the address: load balancers carry no token.
	rightHealth
	// rightMetrics is held by everybody who reaches the address; metrics name no principal, role or address.
	rightMetrics
)

type route struct {
	path  string
	right right
	serve func(*Server, http.ResponseWriter, *http.Request)
}

// routes is the only place that makes something reachable.
var routes = []route{
	{"/healthz", rightHealth, (*Server).healthz},
	{"/readyz", rightHealth, (*Server).readyz},
	{"/metrics", rightMetrics, (*Server).metrics},
}

// held are the rights of a caller without a token, which in this version is every caller.
func held(r right) bool {
	switch r {
	case rightHealth, rightMetrics:
		return true
	case rightNone:
		return false
	}
	return false
}

func (s *Server) handler() http.Handler {
	byPath := make(map[string]route, len(routes))
	for _, r := range routes {
		byPath[r.path] = r
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'none'")
		r, ok := byPath[req.URL.Path]
		switch {
		case !ok:
			writeJSON(w, http.StatusNotFound, answer{Error: "no such path"})
		case !held(r.right):
			writeJSON(w, http.StatusForbidden, answer{Error: "not allowed"})
		case req.Method != http.MethodGet && req.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			writeJSON(w, http.StatusMethodNotAllowed, answer{Error: "only GET and HEAD"})
		default:
			r.serve(s, w, req)
		}
	})
}

// answer is the body of everything but metrics.
type answer struct {
	Status string `json:"status,omitempty"`
	Reason string `json:"reason,omitempty"`
	Error  string `json:"error,omitempty"`
}

func writeJSON(w http.ResponseWriter, code int, a answer) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// An error here means that the client is gone.
	_ = json.NewEncoder(w).Encode(a)
}

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, answer{Status: "up"})
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	if err := s.cfg.Ready(); err != nil {
		writeJSON(w, http.StatusServiceUnavailable, answer{Status: "not ready", Reason: err.Error()})
		return
	}
	writeJSON(w, http.StatusOK, answer{Status: "ready"})
}

func (s *Server) metrics(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	if req.Method == http.MethodHead {
		return
	}
	for _, set := range s.cfg.Sets {
		set.WritePrometheus(w)
	}
	metrics.WriteProcessMetrics(w)
	metrics.WriteFDMetrics(w)
}
