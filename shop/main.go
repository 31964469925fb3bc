// Command shop is what customers, operators and administrators of a shop type. It is in the image for production: shopdev
// runs a shop on a developer's machine, shopbench measures one.
package main

import (
	"os"

	"shop.example/shop/cli"
	"shop.example/shop/command"
)

func main() { os.Exit(cli.Main(command.Root())) }
