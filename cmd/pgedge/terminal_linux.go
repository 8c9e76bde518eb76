package main

import (
	"os"

	"golang.org/x/sys/unix"
)

func terminalDescriptor(fd uintptr) bool {
	_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
	return err == nil
}

// terminalSize is that of a terminal; what does not say so is 80 by 24.
func terminalSize(stream any) (width, height int) {
	if f, ok := stream.(*os.File); ok {
		if ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && ws.Col > 0 && ws.Row > 0 {
			return int(ws.Col), int(ws.Row)
		}
	}
	return 80, 24
}
