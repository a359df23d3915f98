from pgqrs.cli import main

main()
