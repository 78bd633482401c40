#!/bin/sh
# Tests link to this under the name of a compiler or a tool. What it does lies beside the link, under that name.
# It is never written by a test: a program that somebody still writes cannot be run.
. "$0.does"
