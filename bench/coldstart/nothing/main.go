// Command nothing is what starting any Go program costs.
package main

import "fmt"

func main() { fmt.Println("nothing") }
