package audit

import (
	"encoding/json"
	"time"
)

// Schema names the form of a record.
const Schema = "pgedge.audit/v1"

// Kinds of records.
const (
	KindLogin      = "login"
	KindRefusal    = "refusal"
	KindEnd        = "end"
	KindRevocation = "revocation"
	// KindGap says that Missing records before it were dropped.
	KindGap = "gap"
)

// maxTextBytes bounds each text that a client chooses. Postgres's own limit on a startup packet is 10,000 bytes.
const maxTextBytes = 1024

// Record is one event. Empty fields are left out of the line.
type Record struct {
	Schema      string    `json:"schema"`
	Time        time.Time `json:"time"`
	Kind        string    `json:"kind"`
	Node        string    `json:"node,omitempty"`
	Boot        string    `json:"boot,omitempty"`
	Session     string    `json:"session,omitempty"`
	Principal   string    `json:"principal,omitempty"`
	Role        string    `json:"role,omitempty"`
	Database    string    `json:"database,omitempty"`
	Client      string    `json:"client,omitempty"`
	Application string    `json:"application,omitempty"`
	Reason      string    `json:"reason,omitempty"` // why a session ended or a login was refused
	Verb        string    `json:"verb,omitempty"`   // revocation only: revoke, suspend, kill or reinstate
	SQLState    string    `json:"sqlstate,omitempty"`
	Revocation  string    `json:"revocation,omitempty"`
	Detail      string    `json:"detail,omitempty"`
	DurationMS  float64   `json:"duration_ms,omitempty"`
	BytesIn     int64     `json:"bytes_in,omitempty"`  // from the client
	BytesOut    int64     `json:"bytes_out,omitempty"` // to the client
	Missing     uint64    `json:"missing,omitempty"`   // gap only
}

// appendLine adds the record to b as one line.
func (r Record) appendLine(b []byte) []byte {
	r.Schema = Schema
	r.Time = r.Time.UTC()
	for _, s := range []*string{&r.Session, &r.Principal, &r.Role, &r.Database, &r.Client, &r.Application, &r.Reason, &r.Verb, &r.SQLState, &r.Revocation, &r.Detail} {
		if len(*s) > maxTextBytes {
			*s = (*s)[:maxTextBytes] + "..."
		}
	}
	// No field can fail to marshal, and JSON escapes every line break.
	line, err := json.Marshal(r)
	if err != nil {
		panic("audit: a record does not marshal: " + err.Error())
	}
	return append(append(b, line...), '\n')
}
