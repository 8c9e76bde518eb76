// Package revoke is the domain of pgedge: who is revoked, from which journal position on, and what a node
// has to do about it. It is pure: no I/O, no goroutine, no clock read. Times come in with events.
//
// The files follow the life of a revocation: a Scope names what it applies to, a Fact is the message, the Table
// merges facts as maxima of journal positions, the Node turns messages into cuts and stores, Receipts carry the
// evidence, and the Coordinator turns receipts into a verdict.
package revoke
