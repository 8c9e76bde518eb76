package engine

import (
	"sync"
	"testing"
	"time"
)

// A burst takes the announcement of a task from gnet while others of its events are still to be relayed: the loop then
// slept on with the task in its queue.
func TestNoTaskIsLostToABurst(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Loops = 1 })
	const sessions, posters, tasks = 6, 4, 500
	ctx := bounded(t)
	stop := make(chan struct{})
	var queries, posts sync.WaitGroup
	for range sessions {
		conn := n.login("alice")
		queries.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := conn.Exec(ctx, "SELECT 1"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	limit := time.After(time.Minute)
	for range posters {
		posts.Go(func() {
			for i := range tasks {
				ran := make(chan struct{})
				n.loops[0].post(func() { close(ran) })
				select {
				case <-ran:
				case <-limit:
					t.Errorf("task %d has not run", i)
					return
				}
			}
		})
	}
	posts.Wait()
	close(stop)
	queries.Wait()
}
