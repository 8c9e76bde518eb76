// Command sim runs seeds of the simulation of internal/sim until one violates a guarantee.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"pgedge/internal/sim"
)

func main() {
	seed := flag.Uint64("seed", 1, "the first `seed`")
	seeds := flag.Uint64("seeds", 1, "how many seeds to run, one after the other")
	broken := flag.String("broken", "", "break something on purpose: one of "+fmt.Sprint(sim.Breakages))
	verbose := flag.Bool("v", false, "print what happens, also when everything holds")
	flag.Parse()
	for s := *seed; s < *seed+*seeds; s++ {
		w := sim.Random(sim.Config{Seed: s, Broken: sim.Breakage(*broken)})
		if *verbose || w.Err() != nil {
			fmt.Println(strings.Join(w.Log(), "\n"))
		}
		if err := w.Err(); err != nil {
			fmt.Fprintf(os.Stderr, "seed %d: %v\nreplay: go run ./internal/sim/cmd -seed %d\n", s, err, s)
			os.Exit(1)
		}
		if n := s - *seed + 1; n%1000 == 0 {
			fmt.Printf("%d seeds, all guarantees held\n", n)
		}
	}
	fmt.Printf("%d seeds from %d on, all guarantees held\n", *seeds, *seed)
}
