package cluster

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/micro"

	"pgedge/revoke"
)

// Fleet queries are a NATS micro service without a queue group, so that every node answers. An answer is one message
// or, for long lists, several: each says in its headers who it is from and whether it is the last.
const (
	serviceName    = "pgedge"
	serviceVersion = "1.0.0"

	sessionsSubject = "pgedge.query.sessions"
	nodesSubject    = "pgedge.query.nodes"
	impactSubject   = "pgedge.query.impact"

	headerNode = "Pgedge-Node"
	headerBoot = "Pgedge-Boot"
	headerPart = "Pgedge-Part" // 1, 2, 3 ...
	headerLast = "Pgedge-Last" // on the last part: the number of parts

	// maxReplyBytes keeps a reply well below NATS's limit of 1 MiB.
	maxReplyBytes = 512 << 10
	// maxQueryBytes bounds a request; a filter is far smaller.
	maxQueryBytes = 4 << 10
)

// NodeReport is what a node says about itself when asked.
type NodeReport struct {
	Node       string    `json:"node"`
	Boot       string    `json:"boot"`
	Version    string    `json:"version"`
	State      string    `json:"state"`
	Ready      bool      `json:"ready"`
	NotReady   string    `json:"not_ready,omitempty"` // why
	Stale      bool      `json:"stale"`               // it has served, and its lease has ended
	Started    time.Time `json:"started"`
	Applied    uint64    `json:"applied"`
	TableHash  string    `json:"table_hash"` // of the facts up to Applied
	JournalLag uint64    `json:"journal_lag"`
	Unsettled  int       `json:"unsettled"`
	Sessions   int       `json:"sessions"`
	Rejected   uint64    `json:"rejected"`
	// ReceiptsPending is the number of receipts that are not stored yet.
	ReceiptsPending int `json:"receipts_pending"`
	// Unwritable says that the node could not store its last heartbeat.
	Unwritable bool `json:"unwritable"`
}

// serveQueries announces the service.
func (n *Node) serveQueries() error {
	svc, err := micro.AddService(n.nc, micro.Config{
		Name:               serviceName,
		Version:            serviceVersion,
		Description:        "pgedge node",
		Metadata:           map[string]string{"node": n.cfg.Node, "boot": n.cfg.Boot, "version": n.cfg.Version},
		QueueGroupDisabled: true,
	})
	if err != nil {
		return fmt.Errorf("cannot announce the query service: %w", err)
	}
	n.service = svc
	for _, e := range []struct {
		name, subject string
		handle        func(micro.Request)
	}{
		{"sessions", sessionsSubject, n.answerSessions},
		{"nodes", nodesSubject, n.answerNodes},
		{"drill", drillSubject, n.answerDrill},
		{"impact", impactSubject, n.answerImpact},
		{"claims", claimsSubject, n.answerClaims},
		{"drain", drainSubject, n.answerDrain},
	} {
		if err := svc.AddEndpoint(e.name, micro.HandlerFunc(e.handle), micro.WithEndpointSubject(e.subject)); err != nil {
			return fmt.Errorf("cannot announce the query %s: %w", e.name, err)
		}
	}
	return nil
}

func (n *Node) answerSessions(req micro.Request) {
	var filter SessionFilter
	if len(req.Data()) > maxQueryBytes {
		n.refuse(req, fmt.Errorf("query of %d bytes is longer than %d", len(req.Data()), maxQueryBytes))
		return
	}
	if len(req.Data()) > 0 {
		if err := json.Unmarshal(req.Data(), &filter); err != nil {
			n.refuse(req, fmt.Errorf("cannot decode query: %w", err))
			return
		}
	}
	var sessions []revoke.SessionInfo
	if filter.Node == "" || filter.Node == n.cfg.Node {
		sessions = n.eng.Sessions(filter)
	}
	answerList(n, req, sessions)
}

// answerList sends a list as JSON arrays of at most maxReplyBytes each; at least one, possibly empty.
func answerList[T any](n *Node, req micro.Request, items []T) {
	var parts [][]byte
	part := []byte{'['}
	for _, item := range items {
		b, err := json.Marshal(item)
		if err != nil || len(b)+2 > maxReplyBytes {
			n.log.Warn("cannot put an item into an answer", "subject", req.Subject(), "bytes", len(b), "error", err)
			continue
		}
		if len(part)+len(b)+2 > maxReplyBytes {
			parts = append(parts, append(part, ']'))
			part = []byte{'['}
		}
		if len(part) > 1 {
			part = append(part, ',')
		}
		part = append(part, b...)
	}
	parts = append(parts, append(part, ']'))
	for i, p := range parts {
		h := n.answerHeaders(i + 1)
		if i == len(parts)-1 {
			h[headerLast] = []string{strconv.Itoa(len(parts))}
		}
		if err := req.Respond(p, micro.WithHeaders(h)); err != nil {
			n.log.Warn("cannot answer a query", "error", err)
			return
		}
	}
}

func (n *Node) answerNodes(req micro.Request) { n.answer(req, n.report()) }

// answer sends one thing as the whole answer.
func (n *Node) answer(req micro.Request, what any) {
	b, err := json.Marshal(what)
	if err != nil {
		n.refuse(req, fmt.Errorf("cannot encode answer: %w", err))
		return
	}
	h := n.answerHeaders(1)
	h[headerLast] = []string{"1"}
	if err := req.Respond(b, micro.WithHeaders(h)); err != nil {
		n.log.Warn("cannot answer a query", "error", err)
	}
}

func (n *Node) answerHeaders(part int) micro.Headers {
	return micro.Headers{
		headerNode: []string{n.cfg.Node},
		headerBoot: []string{n.cfg.Boot},
		headerPart: []string{strconv.Itoa(part)},
	}
}

func (n *Node) refuse(req micro.Request, why error) {
	h := n.answerHeaders(1)
	h[headerLast] = []string{"1"}
	if err := req.Error("400", why.Error(), nil, micro.WithHeaders(h)); err != nil {
		n.log.Warn("cannot answer a query", "error", err)
	}
}

func (n *Node) report() NodeReport {
	ready, why := n.Ready()
	stats := n.stats()
	applied, hash := n.tableDigest()
	return NodeReport{
		Node:            n.cfg.Node,
		Boot:            n.cfg.Boot,
		Version:         n.cfg.Version,
		State:           n.State(),
		Ready:           ready,
		NotReady:        why,
		Stale:           n.isReady.Load() && !n.Fresh(),
		Started:         n.started,
		Applied:         applied,
		TableHash:       hash,
		JournalLag:      n.pending.Load(),
		Unsettled:       stats.Unsettled,
		Sessions:        n.eng.SessionCount(),
		Rejected:        stats.Rejected,
		ReceiptsPending: n.receipts.pending(),
		Unwritable:      n.m.journalAlarm.Load(),
	}
}
