package engine

// Freeze lets no further byte pass in either direction; the sockets stay. Called from one goroutine at a time, like Cut.
func (e *Engine) Freeze() {}

// Thaw lets frozen sessions go on with what is buffered. The facts missed meanwhile have been applied.
func (e *Engine) Thaw() {}

// Drop ends every frozen session with the full kill, for a lease that has not come back in time.
func (e *Engine) Drop() {}
