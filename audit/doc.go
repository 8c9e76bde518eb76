// Package audit writes what happened as records: one JSON object per line, appended to a file.
//
// Record never blocks, because it is called from event loops: a record goes into a bounded queue, and one goroutine
// writes the queue to the file. When the queue is full, the record is dropped and counted, and the next record that
// fits is preceded by one of kind "gap" that says how many are missing, so that the trail itself is honest.
//
// The goroutine writes whatever is queued in one write. It syncs the file at once after a revocation, at most once
// a second otherwise, and when it closes: a crash of the machine loses at most a second of logins and ends, a crash
// of the process loses what was queued.
package audit
