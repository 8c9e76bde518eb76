package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"pgedge/revoke"
)

// maxAnswerParts bounds what one node may answer: at half a mebibyte each, about a million sessions.
const maxAnswerParts = 1024

// NodeInfo is what is known about one boot of a node.
type NodeInfo struct {
	Presence revoke.Presence `json:"presence"`
	// Status is live, silent (no heartbeat within the lease), gone (silent for ten leases), left, or forgotten
	// (declared dead by an operator).
	Status string `json:"status"`
	// HeardMS is how long ago the last heartbeat was stored, in milliseconds.
	HeardMS int64 `json:"heard_ms"`
	// LeaseLeftMS is how long the boot may go on without another heartbeat, as seen from here; 0 once that is over.
	LeaseLeftMS int64 `json:"lease_left_ms"`
	// TableDiffers says that the node has applied the same facts as this reader and holds another table.
	TableDiffers bool `json:"table_differs"`
	// OtherJournal says that the boot follows another stream than the one it is listed in.
	OtherJournal bool `json:"other_journal"`
	// Report is what the node says about itself; nil when it did not answer.
	Report *NodeReport `json:"report,omitempty"`
}

// State returns the table of what is revoked, the newest presence of every boot, and the last position of the
// journal. The table goes on changing as long as the client is open.
func (c *Client) State(ctx context.Context) (*revoke.Table, []revoke.Presence, uint64, error) {
	if err := c.view.wait(ctx); err != nil {
		return nil, nil, 0, fmt.Errorf("cannot read the journal: %w", err)
	}
	table, presences, lastSeq := c.view.state()
	return table, presences, lastSeq, nil
}

// Sessions asks the whole fleet, or filter.Node alone, for its live sessions. missing names the live nodes that did
// not answer completely before ctx or DialOptions.QueryTimeout ended; the list is then incomplete.
func (c *Client) Sessions(ctx context.Context, filter SessionFilter) (sessions []revoke.SessionInfo, missing []string, err error) {
	request, err := json.Marshal(filter)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot encode query: %w", err)
	}
	return askList[revoke.SessionInfo](ctx, c, sessionsSubject, request, filter.Node, c.opts.QueryTimeout)
}

// askList gathers the lists of all nodes.
func askList[T any](ctx context.Context, c *Client, subject string, request []byte, only string, limit time.Duration) (all []T, missing []string, err error) {
	answers, missing, err := c.askWithin(ctx, subject, request, only, limit)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range answers {
		for _, part := range a.parts {
			var list []T
			if err := json.Unmarshal(part, &list); err != nil {
				return nil, nil, fmt.Errorf("cannot decode the answer of node %s: %w", a.node, err)
			}
			all = append(all, list...)
		}
	}
	return all, missing, nil
}

// Nodes lists every boot that the journal knows of, forgotten ones too, with what the live ones say about themselves.
func (c *Client) Nodes(ctx context.Context) ([]NodeInfo, error) {
	answers, _, err := c.ask(ctx, nodesSubject, nil, "")
	if err != nil {
		return nil, err
	}
	reports := make(map[string]*NodeReport)
	for _, a := range answers {
		var r NodeReport
		if len(a.parts) == 1 && json.Unmarshal(a.parts[1], &r) == nil {
			reports[a.boot] = &r
		}
	}
	_, presences, _ := c.view.state()
	now := time.Now()
	nodes := make([]NodeInfo, 0, len(presences))
	for _, p := range presences {
		info := NodeInfo{
			Presence:     p,
			Status:       presenceStatus(p, now),
			HeardMS:      now.Sub(p.Heard).Milliseconds(),
			Report:       reports[p.Boot],
			OtherJournal: p.Stream != "" && !revoke.SameStream(p.Stream, c.streamID),
		}
		if p.State != revoke.StateLeft {
			info.LeaseLeftMS = max(0, p.Lease().Milliseconds()-info.HeardMS)
		}
		if r := info.Report; r != nil && !info.OtherJournal {
			info.TableDiffers = c.view.contradicts(r.Applied, r.TableHash)
		}
		nodes = append(nodes, info)
	}
	return nodes, nil
}

func presenceStatus(p revoke.Presence, now time.Time) string {
	switch {
	case p.Forgotten != "":
		return "forgotten"
	case p.State == revoke.StateLeft:
		return "left"
	case p.Gone(now):
		return "gone"
	case now.Sub(p.Heard) > p.Lease():
		return "silent"
	}
	return "live"
}

// nodeAnswer is one node's answer, in parts numbered from 1.
type nodeAnswer struct {
	node, boot string
	parts      map[int][]byte
	last       int // number of parts, 0 while unknown
	err        string
}

func (a *nodeAnswer) complete() bool { return a.last > 0 && len(a.parts) == a.last }

// ask sends a query to all nodes and gathers answers until every live node, or the one named only, has answered, or
// DialOptions.QueryTimeout is over.
func (c *Client) ask(ctx context.Context, subject string, request []byte, only string) (answers []*nodeAnswer, missing []string, err error) {
	return c.askWithin(ctx, subject, request, only, c.opts.QueryTimeout)
}

func (c *Client) askWithin(ctx context.Context, subject string, request []byte, only string, limit time.Duration) (answers []*nodeAnswer, missing []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ctx, unbind := c.rights.bind(ctx)
	defer unbind()
	if err := c.view.wait(ctx); err != nil {
		return nil, nil, fmt.Errorf("cannot read the journal: %w", err)
	}
	expected := c.liveBoots(only)
	answers, missing, err = c.gather(ctx, subject, request, expected)
	if only != "" && len(expected) == 0 {
		missing = append(missing, only)
	}
	return answers, missing, err
}

// gather sends a query to all nodes and takes answers until every expected boot has answered or ctx ends.
func (c *Client) gather(ctx context.Context, subject string, request []byte, expected map[string]string) (answers []*nodeAnswer, missing []string, err error) {
	inbox := c.nc.NewInbox()
	sub, err := c.nc.SubscribeSync(inbox)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot ask the fleet: %w", err)
	}
	defer sub.Unsubscribe()
	if err := c.nc.PublishRequest(subject, inbox, request); err != nil {
		return nil, nil, fmt.Errorf("cannot ask the fleet: %w", err)
	}
	byBoot := make(map[string]*nodeAnswer)
	for !allAnswered(expected, byBoot) {
		m, err := sub.NextMsgWithContext(ctx)
		if errors.Is(err, nats.ErrNoResponders) || ctx.Err() != nil {
			break
		}
		if err != nil {
			return nil, nil, fmt.Errorf("cannot ask the fleet: %w", err)
		}
		fileAnswer(byBoot, m)
	}
	if err := c.rights.err(); err != nil {
		return nil, nil, err
	}
	for boot, node := range expected {
		if a := byBoot[boot]; a == nil || !a.complete() {
			missing = append(missing, node)
		}
	}
	for _, a := range byBoot {
		switch {
		case a.err != "":
			return nil, nil, fmt.Errorf("node %s refused the query: %s", a.node, a.err)
		case a.complete():
			answers = append(answers, a)
		}
	}
	slices.Sort(missing)
	slices.SortFunc(answers, func(a, b *nodeAnswer) int { return compareNodeBoot(a.node, a.boot, b.node, b.boot) })
	return answers, slices.Compact(missing), nil
}

// liveBoots maps the boots that should answer to their nodes.
func (c *Client) liveBoots(only string) map[string]string {
	_, presences, _ := c.view.state()
	now := time.Now()
	boots := make(map[string]string)
	for _, p := range presences {
		if p.Live(now) && (only == "" || only == p.Node) {
			boots[p.Boot] = p.Node
		}
	}
	return boots
}

func allAnswered(expected map[string]string, answers map[string]*nodeAnswer) bool {
	for boot := range expected {
		if a := answers[boot]; a == nil || !a.complete() {
			return false
		}
	}
	return true
}

// fileAnswer puts one message where it belongs; what is no answer of ours is ignored.
func fileAnswer(byBoot map[string]*nodeAnswer, m *nats.Msg) {
	node, boot := m.Header.Get(headerNode), m.Header.Get(headerBoot)
	part, err := strconv.Atoi(m.Header.Get(headerPart))
	if node == "" || boot == "" || err != nil || part < 1 || part > maxAnswerParts {
		return
	}
	a := byBoot[boot]
	if a == nil {
		a = &nodeAnswer{node: node, boot: boot, parts: make(map[int][]byte)}
		byBoot[boot] = a
	}
	a.parts[part] = m.Data
	if last, err := strconv.Atoi(m.Header.Get(headerLast)); err == nil && last >= 1 && last <= maxAnswerParts {
		a.last = last
	}
	if text := m.Header.Get(micro.ErrorHeader); text != "" {
		a.err = text
	}
}
