package revoke

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func receiptOf(sessions int) Receipt {
	r := Receipt{Schema: ReceiptSchema, Revocation: "HR-1", Seq: 7, Stage: StageVerified, Matched: sessions, Node: "edge-a", Boot: "b1", Residue: &Residue{Why: "unknown"}, Sessions: []SessionReceipt{}}
	for i := range sessions {
		r.Sessions = append(r.Sessions, SessionReceipt{ID: fmt.Sprintf("edge-a-%d", i)})
	}
	return r
}

func TestPagesJoinToTheReceiptTheyWereMadeOf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		perPage := rapid.IntRange(1, 7).Draw(t, "per page")
		r := receiptOf(rapid.IntRange(0, 30).Draw(t, "sessions"))
		summary, pages := Paginate(r, perPage)
		if len(summary.Sessions) != 0 || summary.Pages != len(pages) || summary.Pages != (len(r.Sessions)+perPage-1)/perPage {
			t.Fatalf("%d sessions in the summary, %d of %d pages", len(summary.Sessions), len(pages), summary.Pages)
		}
		for i, p := range pages {
			if p.Page != i+1 || len(p.Sessions) > perPage || p.Residue != nil {
				t.Fatalf("%+v", p)
			}
		}
		got, err := JoinPages(summary, rapid.Permutation(pages).Draw(t, "order"))
		r.Pages = summary.Pages
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Fatalf("%+v, %v", got, err)
		}
	})
}

func TestAReceiptOfNobodyHasNoPages(t *testing.T) {
	summary, pages := Paginate(receiptOf(0), 0)
	if len(pages) != 0 || summary.Pages != 0 {
		t.Fatal(len(pages))
	}
	b, err := json.Marshal(summary)
	if err != nil || !strings.Contains(string(b), `"sessions":[]`) || strings.Contains(string(b), `"page":`) {
		t.Fatalf("%s, %v", b, err)
	}
}

func TestTenThousandSessionsFitIntoMessages(t *testing.T) {
	r := receiptOf(10000)
	for i := range r.Sessions {
		s := &r.Sessions[i]
		s.Principal, s.Role, s.Database, s.Application, s.Why = strings.Repeat("p", 63), strings.Repeat("r", 63), strings.Repeat("d", 63), strings.Repeat("a", 63), strings.Repeat("w", 200)
	}
	_, pages := Paginate(r, 0)
	for _, p := range pages {
		if b, err := json.Marshal(p); err != nil || len(b) > 1<<20 {
			t.Fatalf("a page of %d bytes, %v", len(b), err)
		}
	}
	if len(pages) != 20 {
		t.Fatal(len(pages))
	}
}

func TestPagesThatDoNotBelongTogetherAreRefused(t *testing.T) {
	summary, pages := Paginate(receiptOf(5), 2)
	change := func(f func([]Receipt) []Receipt) []Receipt {
		return f(append([]Receipt(nil), pages...))
	}
	for what, got := range map[string][]Receipt{
		"missing":       pages[:2],
		"none":          nil,
		"twice":         {pages[0], pages[1], pages[1]},
		"of another":    change(func(p []Receipt) []Receipt { p[1].Boot = "b2"; return p }),
		"out of range":  change(func(p []Receipt) []Receipt { p[1].Page = 9; return p }),
		"zero":          change(func(p []Receipt) []Receipt { p[1].Page = 0; return p }),
		"another count": change(func(p []Receipt) []Receipt { p[1].Pages = 4; return p }),
		"another seq":   change(func(p []Receipt) []Receipt { p[1].Seq = 8; return p }),
	} {
		if _, err := JoinPages(summary, got); err == nil {
			t.Errorf("joined with a page %s", what)
		}
	}
	if _, err := JoinPages(pages[0], pages); err == nil {
		t.Error("a page passed as summary")
	}
	summary.Pages = -1
	if _, err := JoinPages(summary, nil); err == nil {
		t.Error("joined a negative number of pages")
	}
}

func TestReceiptSubjectsRoundTrip(t *testing.T) {
	for page, want := range map[int]string{0: "pgedge.receipt.HR-1.edge-a.b1", 12: "pgedge.receipt.HR-1.edge-a.b1.12"} {
		s := ReceiptSubject("HR-1", "edge-a", "b1", page)
		rev, node, boot, p, err := ParseReceiptSubject(s)
		if s != want || rev != "HR-1" || node != "edge-a" || boot != "b1" || p != page || err != nil {
			t.Fatalf("%s: %s %s %s %d %v", s, rev, node, boot, p, err)
		}
	}
	for _, s := range []string{"", "pgedge.receipt.", "pgedge.receipt.a.b", "pgedge.receipt.a.b.c.0", "pgedge.receipt.a.b.c.01", "pgedge.receipt.a.b.c.-1", "pgedge.receipt.a.b.c.1.2", "pgedge.receipt.a.b.c.x", "pgedge.receipt.a..c", "pgedge.receipt.a@.b.c", "x.receipt.a.b.c", "pgedge.receipt.a.b.c.99999999999999999999"} {
		if _, _, _, _, err := ParseReceiptSubject(s); err == nil {
			t.Errorf("%q parsed", s)
		}
	}
}

func TestAReceiptIsFinalWhenItHasSeenAllGoneOrGivenUp(t *testing.T) {
	for want, list := range map[bool][]Receipt{
		true:  {{Stage: StageVerified}, {Stage: StageClosed, Unverified: 1}, {Stage: StageVerified, Unverified: 1}},
		false: {{Stage: StageCut}, {Stage: StageClosed}, {}},
	} {
		for _, r := range list {
			if r.Final() != want {
				t.Errorf("%s with %d unverified: final is %v", r.Stage, r.Unverified, !want)
			}
		}
	}
}
