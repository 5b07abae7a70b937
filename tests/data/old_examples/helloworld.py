"""Two tasks that say hello, world."""

from ipytaskfarm import client

tc = client.TaskClient()
mec = client.MultiEngineClient()

mec.execute("import time")
hello = tc.run(client.StringTask('time.sleep(0.2) ; word = "Hello,"', pull=("word")))
world = tc.run(client.StringTask('time.sleep(0.2) ; word = "World!"', pull=("word")))
print("Submitted tasks:", hello, world)
print(tc.get_task_result(hello, block=True).ns.word, tc.get_task_result(world, block=True).ns.word)
