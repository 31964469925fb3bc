// Command bench, built as shopbench, measures how fast the shop is.
package main

import (
	"os"

	"shop.example/bench/command"
	"shop.example/shop/cli"
)

func main() { os.Exit(cli.Main(command.Root())) }
