package main

import (
	"io"
	"log/slog"
	"os"
)

// newLogger logs text for people on a terminal and JSON for machines elsewhere.
func newLogger(w io.Writer, format string) (*slog.Logger, error) {
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, nil)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, nil)), nil
	case "auto":
		if isTerminal(w) {
			return slog.New(slog.NewTextHandler(w, nil)), nil
		}
		return slog.New(slog.NewJSONHandler(w, nil)), nil
	default:
		return nil, usageErrorf("--log-format %s: is not one of auto, text and json", format)
	}
}

// isTerminal reports whether a stream is a terminal. Other character devices, such as /dev/null, are not asked for
// confirmation by anybody, so the difference matters.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	return terminalDescriptor(f.Fd())
}
