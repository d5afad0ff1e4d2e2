//go:build tools

// Package peers names what is built as it comes.
package peers

import (
	_ "github.com/letsencrypt/pebble/v2/cmd/pebble"
)
