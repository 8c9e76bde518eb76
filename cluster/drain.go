package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/micro"

	"pgedge/revoke"
)

const drainSubject = "pgedge.query.drain"

// DrainPlan is what a node says when it has been told to drain.
type DrainPlan struct {
	Node string `json:"node"`
	Boot string `json:"boot"`
	// Sessions is how many there are at the time At, by the node's clock. Presences from before are older news.
	Sessions int       `json:"sessions"`
	At       time.Time `json:"at"`
	// DelayMS is how long logins are still served, and then DrainMS how long sessions may take to end.
	DelayMS int64 `json:"delay_ms"`
	DrainMS int64 `json:"drain_ms"`
	// Embeds says that the node runs the NATS server itself, which ends with it.
	Embeds bool `json:"embeds"`
}

// Limit is when the node has left at the latest, if the goodbye takes no time.
func (p DrainPlan) Limit() time.Duration {
	return time.Duration(p.DelayMS+p.DrainMS) * time.Millisecond
}

// drainRequest names the node that is meant. All nodes receive it.
type drainRequest struct {
	Node string `json:"node"`
}

func (n *Node) answerDrain(req micro.Request) {
	var r drainRequest
	if len(req.Data()) > maxQueryBytes || json.Unmarshal(req.Data(), &r) != nil || r.Node != n.cfg.Node {
		return // meant for another node, or for nobody
	}
	if n.cfg.Drain == nil {
		n.refuse(req, errors.New("this node cannot be told to drain"))
		return
	}
	plan, err := n.cfg.Drain()
	if err != nil {
		n.refuse(req, err)
		return
	}
	plan.Node, plan.Boot, plan.Embeds = n.cfg.Node, n.cfg.Boot, n.srv != nil
	plan.At, plan.Sessions = time.Now().UTC(), n.eng.SessionCount()
	n.answer(req, plan)
}

// Drain tells a node to drain and end. It returns when the node has agreed.
func (c *Client) Drain(ctx context.Context, node string) (DrainPlan, error) {
	if err := c.view.wait(ctx); err != nil {
		return DrainPlan{}, fmt.Errorf("cannot read the journal: %w", err)
	}
	if err := c.mayDrain(node); err != nil {
		return DrainPlan{}, err
	}
	request, err := json.Marshal(drainRequest{Node: node})
	if err != nil {
		return DrainPlan{}, fmt.Errorf("cannot encode query: %w", err)
	}
	answers, _, err := c.ask(ctx, drainSubject, request, node)
	if err != nil {
		return DrainPlan{}, err
	}
	if len(answers) == 0 {
		return DrainPlan{}, fmt.Errorf("node %s did not answer: it may have begun to drain all the same", node)
	}
	var plan DrainPlan
	if err := json.Unmarshal(answers[0].parts[1], &plan); err != nil {
		return DrainPlan{}, fmt.Errorf("cannot decode the answer of node %s: %w", node, err)
	}
	return plan, nil
}

// mayDrain says what is known of a node that nobody would answer for.
func (c *Client) mayDrain(node string) error {
	_, presences, _ := c.view.state()
	now := time.Now()
	var live []string
	status := ""
	for _, p := range presences {
		s := presenceStatus(p, now)
		switch {
		case p.Node == node && (s == "live" || s == "silent"):
			return nil // a silent one is asked all the same: it may be slow
		case p.Node == node:
			status = s
		case s == "live":
			live = append(live, p.Node)
		}
	}
	if status != "" {
		return fmt.Errorf("node %s has %s already", node, map[string]string{"left": "left", "gone": "gone", "forgotten": "been forgotten"}[status])
	}
	slices.Sort(live)
	return fmt.Errorf("there is no node %s; live are: %s", node, strings.Join(slices.Compact(live), ", "))
}

// Presence is the newest presence of one boot that this client has seen. ok is false when it knows none.
func (c *Client) Presence(node, boot string) (p revoke.Presence, ok bool) {
	_, presences, _ := c.view.state()
	for _, p := range presences {
		if p.Node == node && p.Boot == boot {
			return p, true
		}
	}
	return revoke.Presence{}, false
}

// Connected reports whether the connection to NATS stands at this moment.
func (c *Client) Connected() bool { return c.nc.IsConnected() }

const (
	// quiesceLimit bounds how long a goodbye waits for facts that have no place in the journal yet.
	quiesceLimit = 2 * time.Second
	quiesceLook  = 5 * time.Millisecond
)

// quiesce brings the node to where its goodbye excuses it from answering: every fact that it has heard of is settled,
// every receipt is stored, and from then on it hears of none. A revocation in the middle of a drain would otherwise
// have to be called incomplete, as nobody could tell what the node did about it.
func (n *Node) quiesce(ctx context.Context) error {
	patience := time.NewTimer(quiesceLimit)
	defer patience.Stop()
	look := time.NewTicker(quiesceLook)
	defer look.Stop()
	for {
		n.sweeper.flush()
		if err := n.receipts.drain(ctx); err != nil {
			return err
		}
		n.mu.Lock()
		done := n.deaf
		n.deaf = done || n.proto.Stats().Unsettled == 0
		again := n.deaf && !done
		n.mu.Unlock()
		switch {
		case done:
			return nil
		case again:
			continue // for the receipts of what came until now
		}
		select {
		case <-look.C:
		case <-patience.C:
			return nil // the goodbye says how many are not settled
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
