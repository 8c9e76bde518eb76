package revoke

// SessionImpact is what ending one session would stop, as far as it can be seen at a moment.
type SessionImpact struct {
	SessionInfo
	// InTransaction says that a transaction block is open, by the node's own account.
	InTransaction bool `json:"in_transaction"`
	// Looked says that the database was asked about the backend. The fields below it mean nothing otherwise, and Why says
	// what was missing.
	Looked             bool    `json:"looked"`
	TransactionSeconds float64 `json:"transaction_seconds"` // age of the open transaction, that of a running statement included
	StatementSeconds   float64 `json:"statement_seconds"`   // age of the running statement; 0 when none runs
	Written            bool    `json:"written"`             // the transaction has changed something
	Locks              int     `json:"locks"`               // locks held
	Blocks             int     `json:"blocks"`              // backends that wait for one of them
	Why                string  `json:"why,omitempty"`
}
