package revoke

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

const (
	// ReceiptSchema is the value of Receipt.Schema.
	ReceiptSchema = "pgedge.receipt/v1"
	// SessionsPerPage keeps a page well below the 1 MB that NATS takes.
	SessionsPerPage = 500
	maxPages        = 1 << 20

	receiptPrefix = subjectPrefix + "receipt."
)

// Stage of a receipt.
type Stage string

const (
	StageCut      Stage = "cut"
	StageClosed   Stage = "closed"
	StageVerified Stage = "verified"
)

// Receipt is one node's evidence about one revocation: schema pgedge.receipt/v1.
type Receipt struct {
	Schema       string           `json:"schema"`
	Revocation   string           `json:"revocation"`
	Seq          uint64           `json:"seq"`
	Epoch        uint64           `json:"epoch"`
	Stage        Stage            `json:"stage"`
	Matched      int              `json:"matched"`
	SupersededBy uint64           `json:"superseded_by"`
	Verb         string           `json:"verb"`
	Scope        string           `json:"scope"`
	Reason       string           `json:"reason"`
	Actor        string           `json:"actor"`
	Source       string           `json:"source"`
	Node         string           `json:"node"`
	Boot         string           `json:"boot"`
	Version      string           `json:"version"`
	ReceivedVia  string           `json:"received_via"` // fast|journal
	PublishedAt  time.Time        `json:"published_at"`
	ReceivedAt   time.Time        `json:"received_at"`
	CutUS        int64            `json:"cut_us"`
	ClosedUS     int64            `json:"closed_us"`
	VerifiedUS   int64            `json:"verified_us"`
	Unverified   int              `json:"unverified"` // sessions whose backend was not seen gone; 0 unless Final
	Pages        int              `json:"pages"`
	Page         int              `json:"page,omitempty"` // 1..Pages on a page, 0 on the summary
	Sessions     []SessionReceipt `json:"sessions"`
	Residue      *Residue         `json:"residue,omitempty"`
}

// Final says that this is the node's last word: it has seen every backend gone, or has given up on some.
func (r Receipt) Final() bool { return r.Stage == StageVerified || r.Unverified > 0 }

// receiptRank orders the receipts of one revocation: one of a higher rank takes the place of a lower one.
type receiptRank uint8

const (
	rankNone receiptRank = iota // no receipt, or one of no known stage
	rankCut
	rankClosed
	rankFinal
)

func (r Receipt) rank() receiptRank {
	switch r.Stage {
	case StageCut:
		// A receipt that has given up on backends has closed all sessions; one that says otherwise proves no more
		// than its stage.
		return rankCut
	case StageClosed, StageVerified:
		if r.Final() {
			return rankFinal
		}
		return rankClosed
	}
	return rankNone
}

// SessionReceipt is what became of one session.
type SessionReceipt struct {
	ID           string    `json:"id"`
	Principal    string    `json:"principal"`
	Role         string    `json:"role"`
	Database     string    `json:"database"`
	Client       string    `json:"client"`
	Application  string    `json:"application"`
	Since        time.Time `json:"since"`
	BackendPID   uint32    `json:"backend_pid"`
	BackendStart string    `json:"backend_start"`
	State        string    `json:"state"`   // idle|active|idle_in_transaction|login
	Cut          string    `json:"cut"`     // gate|login_refused
	Backend      string    `json:"backend"` // gone|cancelled|closed|timeout|none
	Verified     bool      `json:"verified"`
	Why          string    `json:"why"`
	Xact         string    `json:"xact"` // none|aborted|committed|unknown
	MorePossible bool      `json:"more_possible"`
	BytesAfter   int64     `json:"bytes_after_cut"`
	SQLState     string    `json:"sqlstate"`
}

// Residue is what a kill cannot undo and what was done about it in the database, as the one node saw it that was
// responsible for the server. What could not be read is nil, never zero, and Why says what kept it from being read.
type Residue struct {
	PreparedXacts    *int `json:"prepared_xacts,omitempty"`    // of the role, in all databases of the server
	ReplicationSlots *int `json:"replication_slots,omitempty"` // in use by a backend of the role
	// DirectSessions are backends of the role that no node holds: they bypass pgedge. Those that the sweep has ended
	// are not counted.
	DirectSessions *int  `json:"direct_sessions,omitempty"`
	RoleCanLogin   *bool `json:"role_can_login,omitempty"`
	// StoppedFor are the backends that were stopped for boots which could not do it themselves.
	StoppedFor []StoppedFor `json:"stopped_for,omitempty"`
	Swept      *Swept       `json:"swept,omitempty"` // only with sweep: true
	Why        string       `json:"why,omitempty"`
}

// StoppedFor says how many backends of the role were stopped that came from a boot which was silent or had crashed.
type StoppedFor struct {
	Node     string `json:"node"`
	Boot     string `json:"boot"`
	Backends int    `json:"backends"`           // seen gone
	NotGone  int    `json:"not_gone,omitempty"` // terminated, or not to be terminated by the control role, and still there
}

// Swept is what `sweep: true` has done.
type Swept struct {
	DirectSessions int  `json:"direct_sessions"` // ended and seen gone
	NoLogin        bool `json:"nologin"`         // the role was set NOLOGIN for this; false where it could not log in before
}

// Paginate splits a receipt into a summary without sessions and pages of at most perPage of them (SessionsPerPage
// when that is not positive). Pages are always used, so that a reader has one way to find sessions; a receipt
// without sessions has none. The pages share the memory of r.Sessions.
func Paginate(r Receipt, perPage int) (summary Receipt, pages []Receipt) {
	if perPage <= 0 {
		perPage = SessionsPerPage
	}
	summary = r
	summary.Page = 0
	summary.Pages = (len(r.Sessions) + perPage - 1) / perPage
	summary.Sessions = []SessionReceipt{}
	for i := range summary.Pages {
		page := summary
		page.Page = i + 1
		page.Residue = nil
		page.Sessions = r.Sessions[i*perPage : min((i+1)*perPage, len(r.Sessions))]
		pages = append(pages, page)
	}
	return summary, pages
}

// JoinPages is the inverse of Paginate; the pages come in any order. It is an error when one is missing, comes twice
// or belongs to another receipt.
func JoinPages(summary Receipt, pages []Receipt) (Receipt, error) {
	if summary.Page != 0 {
		return Receipt{}, fmt.Errorf("cannot join receipt pages: page %d is not a summary", summary.Page)
	}
	if summary.Pages < 0 || summary.Pages > maxPages {
		return Receipt{}, fmt.Errorf("cannot join receipt pages: a summary of %d pages", summary.Pages)
	}
	if len(pages) != summary.Pages {
		return Receipt{}, fmt.Errorf("cannot join receipt pages: %d of %d are there", len(pages), summary.Pages)
	}
	ordered := make([]*Receipt, len(pages))
	total := 0
	for i := range pages {
		p := &pages[i]
		switch {
		case p.Revocation != summary.Revocation || p.Node != summary.Node || p.Boot != summary.Boot || p.Seq != summary.Seq || p.Epoch != summary.Epoch:
			return Receipt{}, fmt.Errorf("cannot join receipt pages: page %d belongs to another receipt", p.Page)
		case p.Page < 1 || p.Page > summary.Pages || p.Pages != summary.Pages:
			return Receipt{}, fmt.Errorf("cannot join receipt pages: page %d of %d among %d", p.Page, p.Pages, summary.Pages)
		case ordered[p.Page-1] != nil:
			return Receipt{}, fmt.Errorf("cannot join receipt pages: page %d comes twice", p.Page)
		}
		ordered[p.Page-1] = p
		total += len(p.Sessions)
	}
	full := summary
	full.Sessions = make([]SessionReceipt, 0, total)
	for _, p := range ordered {
		full.Sessions = append(full.Sessions, p.Sessions...)
	}
	return full, nil
}

// ReceiptSubject is where a node publishes its receipt of a revocation: the summary with page 0, its pages with 1
// and up.
func ReceiptSubject(revocation, node, boot string, page int) string {
	s := receiptPrefix + revocation + "." + node + "." + boot
	if page > 0 {
		s += "." + strconv.Itoa(page)
	}
	return s
}

// ParseReceiptSubject is the inverse of ReceiptSubject.
func ParseReceiptSubject(subject string) (revocation, node, boot string, page int, err error) {
	rest, ok := strings.CutPrefix(subject, receiptPrefix)
	tokens := strings.SplitN(rest, ".", 5)
	if !ok || len(tokens) < 3 || len(tokens) > 4 || !ValidID(tokens[0]) || !ValidNodeID(tokens[1]) || !ValidID(tokens[2]) {
		return "", "", "", 0, fmt.Errorf("cannot parse subject %.128q: no receipt's", subject)
	}
	if len(tokens) == 4 {
		page, err = strconv.Atoi(tokens[3])
		if err == nil && (page < 1 || page > maxPages || strconv.Itoa(page) != tokens[3]) {
			err = errors.New("no such page")
		}
		if err != nil {
			return "", "", "", 0, fmt.Errorf("cannot parse subject %.128q: %w", subject, err)
		}
	}
	return tokens[0], tokens[1], tokens[2], page, nil
}
