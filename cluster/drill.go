package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/micro"
)

const (
	drillSubject = "pgedge.query.drill"
	// drillStepTimeout bounds one step on a node: a login through its own listener, or the wait for a session to end.
	drillStepTimeout = 20 * time.Second
	// drillAnswerSlack is what a client waits beyond that, for the answer to travel.
	drillAnswerSlack = 2 * time.Second
)

// Steps of a drill, in their order. Each is asked of every node and answered by it.
const (
	DrillAsk   = "ask"   // who is the canary?
	DrillBegin = "begin" // log the canary in through every listener, and keep the sessions
	DrillSeen  = "seen"  // wait until the sessions have ended, and say what their client saw
	DrillAgain = "again" // log in once more through every listener, and hang up
	DrillEnd   = "end"   // give up what is left of the drill
)

// DrillRequest is one step of one drill.
type DrillRequest struct {
	ID   string `json:"id"`
	Step string `json:"step"`
	// Applied is the position of the journal that the node must have applied before it carries out the step.
	Applied uint64 `json:"applied,omitempty"`
}

// DrillAnswer is what a node says to one step.
type DrillAnswer struct {
	// Canary is the principal that the node logs in; "" when its configuration names none.
	Canary string `json:"canary,omitempty"`
	// Error says why the node did not carry out the step.
	Error  string        `json:"error,omitempty"`
	Logins []CanaryLogin `json:"logins,omitempty"`
}

// CanaryLogin is one login of the canary through one listener, as its client saw it.
type CanaryLogin struct {
	Listener string  `json:"listener"`
	In       bool    `json:"in"` // the login succeeded
	TookMS   float64 `json:"took_ms"`
	// SQLState and Message are the error that refused the login or ended the session.
	SQLState string `json:"sqlstate,omitempty"`
	Message  string `json:"message,omitempty"`
	// Ended is when the client of a session saw its end, by the node's clock, with which its receipts are stamped too.
	Ended *time.Time `json:"ended,omitempty"`
}

// Canary carries out drills on a node.
type Canary interface {
	// Drill carries out one step. It is called by one goroutine at a time and returns when ctx ends.
	Drill(ctx context.Context, req DrillRequest) DrillAnswer
}

// noCanary is the canary of a node whose configuration names none.
type noCanary struct{}

func (noCanary) Drill(context.Context, DrillRequest) DrillAnswer { return DrillAnswer{} }

func (n *Node) answerDrill(req micro.Request) {
	var r DrillRequest
	if len(req.Data()) > maxQueryBytes {
		n.refuse(req, fmt.Errorf("query of %d bytes is longer than %d", len(req.Data()), maxQueryBytes))
		return
	}
	if err := json.Unmarshal(req.Data(), &r); err != nil {
		n.refuse(req, fmt.Errorf("cannot decode query: %w", err))
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, drillStepTimeout)
	defer cancel()
	n.answer(req, n.cfg.Canary.Drill(ctx, r))
}

// NodeDrill is a node's answer to one step of a drill.
type NodeDrill struct {
	Node string
	Boot string
	DrillAnswer
}

// Drill asks for one step of a drill: DrillAsk all live nodes, every other step those that have answered it, among.
// missing names those that did not answer in time.
func (c *Client) Drill(ctx context.Context, req DrillRequest, among []NodeDrill) (drills []NodeDrill, missing []string, err error) {
	b, err := json.Marshal(req)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot encode query: %w", err)
	}
	var answers []*nodeAnswer
	if req.Step == DrillAsk {
		answers, missing, err = c.ask(ctx, drillSubject, b, "")
	} else {
		expected := make(map[string]string, len(among))
		for _, d := range among {
			expected[d.Boot] = d.Node
		}
		ctx, cancel := context.WithTimeout(ctx, drillStepTimeout+drillAnswerSlack)
		defer cancel()
		answers, missing, err = c.gather(ctx, drillSubject, b, expected)
	}
	if err != nil {
		return nil, nil, err
	}
	for _, a := range answers {
		d := NodeDrill{Node: a.node, Boot: a.boot}
		if err := json.Unmarshal(a.parts[1], &d.DrillAnswer); err != nil {
			return nil, nil, fmt.Errorf("cannot decode the drill of node %s: %w", a.node, err)
		}
		drills = append(drills, d)
	}
	return drills, missing, nil
}
