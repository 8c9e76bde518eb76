// Package sim is a seeded simulation of a fleet: publishers, a journal with compaction, a fast path that loses, repeats
// and reorders, machines with clocks of their own, and on each of them the state machine of package revoke with a
// simulated engine. Nothing in it reads a clock or draws a number but from its seed, so a seed is a run.
//
// A record that no process can see keeps what was stored, reported and let through, and checks the guarantees G1, G2,
// G5, G6 and G7 of docs/guarantees.md at each step that lets something through or claims something.
package sim
