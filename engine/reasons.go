package engine

import (
	"log/slog"

	"pgedge/codec"
)

// Reason says why a session ended or a login was refused. The first reason wins; it picks what the client is
// told, how loudly the end is logged, and the label of pgedge_closes_total.
type Reason uint8

const (
	reasonNone Reason = iota // the session lives
	ReasonClientGone
	ReasonBackendGone
	ReasonLoginRefused // Postgres itself refused the login; its own error was passed on
	ReasonRevoked
	ReasonSuspended
	ReasonKilled
	ReasonNotReady
	ReasonStale
	ReasonStaleLogin
	ReasonShutdown
	ReasonShutdownLogin
	ReasonTooManySessions
	ReasonPrincipalSessions
	ReasonDatabaseSessions
	ReasonLoginTimeout
	ReasonProtocol
	ReasonBadLength
	ReasonUnsupported
	ReasonNoUser
	ReasonUnknownDatabase
	ReasonUpstreamUnreachable
	ReasonUpstreamProtocol
	ReasonUpstreamLost
	ReasonUpstreamAuth
	ReasonIdle
	ReasonIdleInTransaction
	ReasonSessionMax
	ReasonCancelRequest
	ReasonProbe
	ReasonBug
	reasonCount
)

// outcome is one row of the only table in pgedge that holds SQLSTATEs of the engine's own errors.
type outcome struct {
	label    string         // of pgedge_closes_total{reason} and of the audit record
	severity codec.Severity // of what the client is told
	code     string         // SQLSTATE; empty: the client is told nothing
	text     string         // what the client reads
	level    slog.Level     // of the log line
}

// outcomes is indexed by Reason. 28000 for a revocation and not 57P01: poolers and drivers reconnect on 57P01,
// which would make a storm of a revocation.
var outcomes = [reasonCount]outcome{
	reasonNone:                {"none", "", "", "", slog.LevelDebug},
	ReasonClientGone:          {"client_gone", "", "", "", slog.LevelDebug},
	ReasonBackendGone:         {"backend_gone", "", "", "", slog.LevelInfo},
	ReasonLoginRefused:        {"login_refused", "", "", "", slog.LevelInfo},
	ReasonRevoked:             {"revoked", codec.SeverityFatal, "28000", "access for %q was revoked", slog.LevelWarn},
	ReasonSuspended:           {"suspended", codec.SeverityFatal, "28000", "access for %q is suspended", slog.LevelWarn},
	ReasonKilled:              {"killed", codec.SeverityFatal, "57P01", "session of %q was ended by an administrator", slog.LevelWarn},
	ReasonNotReady:            {"not_ready", codec.SeverityFatal, "57P03", "this node is not ready to accept connections", slog.LevelInfo},
	ReasonStale:               {"stale", codec.SeverityFatal, "57P03", "terminating connection because this node has lost the journal of revocations", slog.LevelWarn},
	ReasonStaleLogin:          {"stale_login", codec.SeverityFatal, "57P03", "this node has lost the journal of revocations and accepts no connections until it is back", slog.LevelInfo},
	ReasonShutdown:            {"shutdown", codec.SeverityFatal, "57P01", "terminating connection because this node is shutting down", slog.LevelInfo},
	ReasonShutdownLogin:       {"shutdown_login", codec.SeverityFatal, "57P03", "this node is shutting down", slog.LevelInfo},
	ReasonTooManySessions:     {"too_many_sessions", codec.SeverityFatal, "53300", "sorry, too many clients already", slog.LevelWarn},
	ReasonPrincipalSessions:   {"principal_sessions", codec.SeverityFatal, "53300", "too many connections for %q", slog.LevelWarn},
	ReasonDatabaseSessions:    {"database_sessions", codec.SeverityFatal, "53300", "too many connections for this database", slog.LevelWarn},
	ReasonLoginTimeout:        {"login_timeout", "", "", "", slog.LevelInfo}, // Postgres says nothing either
	ReasonProtocol:            {"protocol", codec.SeverityFatal, "08P01", "protocol violation", slog.LevelWarn},
	ReasonBadLength:           {"bad_length", "", "", "", slog.LevelWarn}, // Postgres says nothing either
	ReasonUnsupported:         {"unsupported", codec.SeverityFatal, "0A000", "unsupported frontend protocol", slog.LevelInfo},
	ReasonNoUser:              {"no_user", codec.SeverityFatal, "28000", "no PostgreSQL user name specified in startup packet", slog.LevelInfo},
	ReasonUnknownDatabase:     {"unknown_database", codec.SeverityFatal, "3D000", "database %q does not exist", slog.LevelInfo},
	ReasonUpstreamUnreachable: {"upstream_unreachable", codec.SeverityFatal, "08001", "the database server cannot be reached", slog.LevelError},
	ReasonUpstreamProtocol:    {"upstream_protocol", codec.SeverityFatal, "08P01", "the database server answered with something that is not understood", slog.LevelError},
	ReasonUpstreamLost:        {"upstream_lost", codec.SeverityFatal, "08006", "the connection to the database server was lost", slog.LevelError},
	ReasonUpstreamAuth:        {"upstream_auth", codec.SeverityFatal, "0A000", "the database server asks for an authentication method that cannot be passed through", slog.LevelError},
	ReasonIdle:                {"idle", codec.SeverityFatal, "57P05", "terminating connection due to idle-session timeout", slog.LevelInfo},
	ReasonIdleInTransaction:   {"idle_in_transaction", codec.SeverityFatal, "25P03", "terminating connection due to idle-in-transaction timeout", slog.LevelInfo},
	ReasonSessionMax:          {"session_max", codec.SeverityFatal, "57P05", "terminating connection because it has reached its longest lifetime", slog.LevelInfo},
	ReasonCancelRequest:       {"cancel_request", "", "", "", slog.LevelDebug},
	ReasonProbe:               {"probe", "", "", "", slog.LevelDebug},
	ReasonBug:                 {"bug", codec.SeverityFatal, "XX000", "internal error", slog.LevelError},
}

// String is the label used by metrics, logs and audit.
func (r Reason) String() string { return outcomes[r].label }

// SQLState is what the client is told, or "" where it is told nothing.
func (r Reason) SQLState() string { return outcomes[r].code }

// cutReason tells whether the reason closes the gate by a fact of the journal.
func (r Reason) cutReason() bool {
	return r == ReasonRevoked || r == ReasonSuspended || r == ReasonKilled
}
