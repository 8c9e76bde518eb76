package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"pgedge/revoke"
)

const (
	claimsSubject = "pgedge.query.claims"
	// claimsTimeout is how long a pass waits for the claims of live nodes. What a node that is late may hold is left
	// alone in that pass.
	claimsTimeout = 250 * time.Millisecond
	// maxClaimsQueryBytes is room for the roles of one pass, each character escaped.
	maxClaimsQueryBytes = 256 << 10
)

// claimsQuery asks every node which backends it holds for some roles.
type claimsQuery struct {
	Roles []string `json:"roles"`
}

func (n *Node) answerClaims(req micro.Request) {
	var q claimsQuery
	if len(req.Data()) > maxClaimsQueryBytes {
		n.refuse(req, fmt.Errorf("query of %d bytes is longer than %d", len(req.Data()), maxClaimsQueryBytes))
		return
	}
	if err := json.Unmarshal(req.Data(), &q); err != nil || len(q.Roles) > maxPassTasks {
		n.refuse(req, fmt.Errorf("cannot decode query of %d roles: %w", len(q.Roles), err))
		return
	}
	answerList(n, req, n.eng.Claims(q.Roles))
}

// claimed is what the other nodes say they hold.
type claimed struct {
	list     []revoke.Claim
	answered map[string]bool   // boots
	missing  []revoke.Presence // live nodes that did not answer in time
}

// askClaims asks the whole fleet and waits for those that count as live.
func (n *Node) askClaims(ctx context.Context, roles []string, live []revoke.Presence) claimed {
	out := claimed{answered: make(map[string]bool)}
	answers := make(map[string]*nodeAnswer)
	if len(live) > 0 {
		if err := n.gatherClaims(ctx, roles, live, answers); err != nil && n.repeats.allow("claims "+err.Error(), time.Now(), repeatEvery) {
			n.log.Warn("cannot ask the other nodes which backends they hold", "error", err)
		}
	}
	for boot, a := range answers {
		if a.err != "" || !a.complete() || boot == n.cfg.Boot {
			continue
		}
		whole := true
		var list []revoke.Claim
		for _, part := range a.parts {
			var some []revoke.Claim
			whole = whole && json.Unmarshal(part, &some) == nil
			list = append(list, some...)
		}
		if whole {
			out.answered[boot] = true
			out.list = append(out.list, list...)
		}
	}
	for _, p := range live {
		if !out.answered[p.Boot] {
			out.missing = append(out.missing, p)
		}
	}
	return out
}

func (n *Node) gatherClaims(ctx context.Context, roles []string, live []revoke.Presence, answers map[string]*nodeAnswer) error {
	ctx, cancel := context.WithTimeout(ctx, claimsTimeout)
	defer cancel()
	request, err := json.Marshal(claimsQuery{Roles: roles})
	if err != nil {
		return fmt.Errorf("cannot encode query: %w", err)
	}
	inbox := n.nc.NewInbox()
	sub, err := n.nc.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer sub.Unsubscribe()
	if err := n.nc.PublishMsg(&nats.Msg{Subject: claimsSubject, Reply: inbox, Data: request}); err != nil {
		return err
	}
	expected := make(map[string]string, len(live))
	for _, p := range live {
		expected[p.Boot] = p.Node
	}
	for !allAnswered(expected, answers) {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return nil // time is up: who is missing is seen by the caller
		}
		fileAnswer(answers, m)
	}
	return nil
}
