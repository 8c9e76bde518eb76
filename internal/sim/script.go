package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"pgedge/revoke"
)

// Script runs a script in a calm world and returns it. A line is a command; what begins with # is a comment:
//
//	login NODE PRINCIPAL          and say what becomes of it
//	revoke|kill PRINCIPAL [bare]  suspend PRINCIPAL DURATION [bare]  reinstate PRINCIPAL
//	partition|heal NODE           crash|boot NODE
//	stop|sleep|pause|resume NODE  wall NODE DURATION
//	lose NODE                     the fast path loses everything for the node; find NODE ends that
//	lag|slow NODE DURATION        how late its replica is, and each message behind the one before it
//	leader down|up                backup  restore  recreate
//	run DURATION                  let time pass
//	settle                        heal everything, come to rest and check
//
// An error is a script that cannot be read or a guarantee that was not kept.
func Script(cfg Config, text string) (*World, error) {
	cfg.Calm = true
	w := New(cfg)
	for i, line := range strings.Split(text, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if err := w.command(words); err != nil {
			return w, fmt.Errorf("line %d: %q: %w", i+1, line, err)
		}
		if w.failed != nil {
			return w, fmt.Errorf("line %d: %q: %w", i+1, line, w.failed)
		}
	}
	return w, nil
}

func (w *World) command(words []string) error {
	arg := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	switch words[0] {
	case "run":
		d, err := time.ParseDuration(arg(1))
		if err != nil {
			return err
		}
		w.Run(w.now + d)
		return nil
	case "settle":
		w.Settle(w.journal.lineage > 0)
		return nil
	case "backup":
		w.journal.save()
		return nil
	case "restore":
		w.journal.restore()
		return nil
	case "recreate":
		w.journal.recreate()
		return nil
	case "leader":
		w.journal.leader(arg(1) == "up")
		return nil
	case "revoke", "kill", "suspend", "reinstate":
		verb, _ := revoke.ParseVerb(words[0])
		var until time.Duration
		if verb == revoke.VerbSuspend {
			var err error
			if until, err = time.ParseDuration(arg(2)); err != nil {
				return err
			}
		}
		if !slices.Contains(principals, arg(1)) {
			return fmt.Errorf("the people are %s", principals)
		}
		w.desk.publish(verb, arg(1), slices.Contains(words, "bare"), until)
		return nil
	}
	for _, m := range w.machines {
		if m.name == arg(1) {
			return w.machineCommand(m, words[0], arg(2))
		}
	}
	return fmt.Errorf("no such command, or no machine %q", arg(1))
}

func (w *World) machineCommand(m *machine, command, arg string) error {
	switch command {
	case "login":
		if m.proc == nil {
			w.note("%s: nobody listens for %s", m.name, arg)
			return nil
		}
		m.proc.do(func() {
			m.proc.engine.login(arg, func(admitted bool) {
				w.note("%s: %s is %s", m.name, arg, map[bool]string{true: "admitted", false: "refused"}[admitted])
			})
		})
	case "partition":
		m.partition(true)
	case "heal":
		m.partition(false)
	case "crash":
		m.kill()
	case "boot":
		m.boot()
	case "stop":
		m.halt(stopProcess)
	case "sleep":
		m.halt(sleeping)
	case "pause":
		m.halt(paused)
	case "resume":
		m.resume()
	case "lag", "slow":
		d, err := time.ParseDuration(arg)
		if err != nil || m.proc == nil {
			return fmt.Errorf("no duration, or no process: %w", err)
		}
		if command == "lag" {
			m.proc.journal.lag = d
		} else {
			m.proc.journal.slow = d
		}
	case "lose":
		m.deaf = true
	case "find":
		m.deaf = false
	case "wall":
		d, err := time.ParseDuration(arg)
		if err != nil {
			return err
		}
		m.setWall(d)
	default:
		return fmt.Errorf("no such command")
	}
	return nil
}
