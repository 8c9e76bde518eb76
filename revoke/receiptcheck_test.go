package revoke

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func goodReceipt(sessions int) Receipt {
	r := Receipt{
		Schema: ReceiptSchema, Revocation: "R", Seq: 7, Epoch: 1, Stage: StageVerified, Matched: sessions, Verb: "revoke", Scope: "principal.alice",
		Node: "a", Boot: "b", PublishedAt: t0, ReceivedAt: t0.Add(time.Millisecond), CutUS: 10, ClosedUS: 20, VerifiedUS: 30,
		Pages: (sessions + SessionsPerPage - 1) / SessionsPerPage,
	}
	for i := range sessions {
		r.Sessions = append(r.Sessions, SessionReceipt{ID: fmt.Sprintf("a-%d", i), Backend: "gone", Verified: true})
	}
	return r
}

func TestAReceiptAsNodesMakeItHasNoProblem(t *testing.T) {
	cut := goodReceipt(0)
	cut.Stage, cut.Matched, cut.ClosedUS, cut.VerifiedUS = StageCut, 9, 0, 0
	superseded := goodReceipt(1)
	superseded.Seq, superseded.SupersededBy = 0, 9
	unverified := goodReceipt(2)
	unverified.Stage, unverified.Unverified, unverified.Sessions[1].Verified = StageClosed, 1, false
	for what, r := range map[string]Receipt{
		"none": goodReceipt(0), "one": goodReceipt(1), "many": goodReceipt(501), "cut": cut, "superseded": superseded, "unverified": unverified,
	} {
		if p := r.Problems(t0.Add(time.Second)); len(p) > 0 {
			t.Errorf("%s: %q", what, p)
		}
	}
}

func TestEveryInconsistencyOfAReceiptIsTold(t *testing.T) {
	for want, change := range map[string]func(*Receipt){
		"schema is":                         func(r *Receipt) { r.Schema = "x" },
		"revocation is no id":               func(r *Receipt) { r.Revocation = "a.b" },
		"node is no node id":                func(r *Receipt) { r.Node = "" },
		"boot is no id":                     func(r *Receipt) { r.Boot = "*" },
		"not one that ends sessions":        func(r *Receipt) { r.Verb = "reinstate" },
		"verb is":                           func(r *Receipt) { r.Verb = "x" },
		"scope cannot be read":              func(r *Receipt) { r.Scope = "planet.mars" },
		"no position":                       func(r *Receipt) { r.Seq = 0 },
		"not newer than":                    func(r *Receipt) { r.SupersededBy = 7 },
		"stage is":                          func(r *Receipt) { r.Stage = "great" },
		"not a whole receipt":               func(r *Receipt) { r.Page = 1 },
		"negative":                          func(r *Receipt) { r.Matched = -1 },
		"do not come on":                    func(r *Receipt) { r.Pages = 0 },
		"comes twice":                       func(r *Receipt) { r.Sessions[1].ID = r.Sessions[0].ID },
		"passed 3 bytes after the cut":      func(r *Receipt) { r.Sessions[1].BytesAfter = 3 },
		"its backend as timeout":            func(r *Receipt) { r.Sessions[1].Backend = "timeout" },
		"3 sessions matched, 2 are listed":  func(r *Receipt) { r.Matched = 3 },
		"unverified is 0, and 1":            func(r *Receipt) { r.Sessions[1].Verified = false },
		"with 1 sessions that are not":      func(r *Receipt) { r.Unverified = 1; r.Sessions[1].Verified = false },
		"does not say when":                 func(r *Receipt) { r.ReceivedAt = time.Time{} },
		"in the future":                     func(r *Receipt) { r.ReceivedAt = t0.Add(time.Hour) },
		"before it was published":           func(r *Receipt) { r.PublishedAt = t0.Add(time.Hour) },
		"cut after a negative time":         func(r *Receipt) { r.CutUS = -1 },
		"verified after 15 us, earlier":     func(r *Receipt) { r.VerifiedUS = 15 },
		"closed after 5 us, earlier":        func(r *Receipt) { r.ClosedUS = 5 },
		"2 sessions do not come on 0 pages": func(r *Receipt) { r.Pages = 0 },
	} {
		r := goodReceipt(2)
		change(&r)
		if p := strings.Join(r.Problems(t0.Add(time.Second)), "\n"); !strings.Contains(p, want) {
			t.Errorf("%s: told %q", want, p)
		}
	}
}
