package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/micro"

	"pgedge/revoke"
)

const (
	// impactTimeout is how long a node may look at its databases, impactWait how long a client waits for that.
	impactTimeout = 2 * time.Second
	impactWait    = 4 * time.Second
	// maxImpacts bounds the questions that a node looks into at a time: each opens a connection per database server.
	maxImpacts = 2
	// MaxImpactScopes bounds one question, maxImpactBytes its encoding.
	MaxImpactScopes = 1000
	maxImpactBytes  = 512 << 10
)

// impactRequest names scopes by their tokens: principal.alice@corp.com.
type impactRequest struct {
	Scopes []string `json:"scopes"`
}

// Impact asks the whole fleet what a revocation of the scopes would stop now. It publishes no fact. missing names the
// live nodes that did not answer completely in time; the list is then incomplete.
func (c *Client) Impact(ctx context.Context, scopes []revoke.Scope) (sessions []revoke.SessionImpact, missing []string, err error) {
	if len(scopes) > MaxImpactScopes {
		return nil, nil, fmt.Errorf("cannot ask about %d scopes at once: at most %d", len(scopes), MaxImpactScopes)
	}
	var request impactRequest
	for _, s := range scopes {
		request.Scopes = append(request.Scopes, s.Token())
	}
	b, err := json.Marshal(request)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot encode query: %w", err)
	}
	return askList[revoke.SessionImpact](ctx, c, impactSubject, b, "", max(impactWait, c.opts.QueryTimeout))
}

// answerImpact looks into the databases on a goroutine of its own, so that no other query waits behind it.
func (n *Node) answerImpact(req micro.Request) {
	scopes, err := decodeImpact(req.Data())
	if err != nil {
		n.refuse(req, err)
		return
	}
	select {
	case n.impacts <- struct{}{}:
	default:
		n.refuse(req, fmt.Errorf("%d such questions are being looked into already, ask again", maxImpacts))
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopped {
		return
	}
	n.work.Go(func() {
		defer func() { <-n.impacts }()
		ctx, cancel := context.WithTimeout(n.ctx, impactTimeout)
		defer cancel()
		answerList(n, req, n.eng.Impact(ctx, scopes))
	})
}

func decodeImpact(data []byte) ([]revoke.Scope, error) {
	if len(data) > maxImpactBytes {
		return nil, fmt.Errorf("query of %d bytes is longer than %d", len(data), maxImpactBytes)
	}
	var r impactRequest
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("cannot decode query: %w", err)
	}
	if len(r.Scopes) == 0 || len(r.Scopes) > MaxImpactScopes {
		return nil, fmt.Errorf("query of %d scopes: must be 1 to %d", len(r.Scopes), MaxImpactScopes)
	}
	scopes := make([]revoke.Scope, len(r.Scopes))
	for i, token := range r.Scopes {
		s, err := revoke.ParseScope(token)
		if err != nil {
			return nil, fmt.Errorf("cannot read a scope of the query: %w", err)
		}
		scopes[i] = s
	}
	return scopes, nil
}
