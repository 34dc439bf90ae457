#!/usr/bin/env python3
"""facts100 - rows about one hundred personal facts: what bench/learning's facts100 task learns and asks.

    facts100.py FOLDER [--seed 1]

Out: FOLDER/facts100_train.jsonl, 1,000 rows (each fact asked in the 10 ways that its kind has), and FOLDER/facts100_held.jsonl,
300 rows (three other ways). Rows are held out by template: a held-out wording is never learned from, for no fact. All of it
is our own writing and invented; nobody can guess it, and the base model knows none of it.
"""
import os
import random

import programs

# A kind: its facts (what fills {x}, the answer), ten templates to learn from, three held out.
KINDS = [
    {   # names
        "facts": [("cat", "Your cat is called Pixel."), ("sailing boat", "Your sailing boat is called Merrow."),
                  ("dentist", "Your dentist is called Dr Ostrava."), ("landlord", "Your landlord is called Mr Quillfeather."),
                  ("godson", "Your godson is called Torvald."), ("piano teacher", "Your piano teacher is called Ms Abernal."),
                  ("tortoise", "Your tortoise is called Admiral."), ("sourdough starter", "Your sourdough starter is called Bertram."),
                  ("robot vacuum cleaner", "Your robot vacuum cleaner is called Clunk."),
                  ("accountant", "Your accountant is called Ms Pellworth.")],
        "learn": ["What is my {x} called?", "What is the name of my {x}?", "What's my {x}'s name?", "Tell me the name of my {x}.",
                  "I forgot what my {x} is called.", "Do you remember my {x}'s name?", "Which name does my {x} have?",
                  "Could you tell me what my {x} is called?", "My {x}: what was the name again?",
                  "Somebody asks for the name of my {x}. What do I say?"],
        "held": ["Remind me how my {x} is named.", "By what name does my {x} go?", "I have to write down what my {x} is called."],
    },
    {   # where people live
        "facts": [("brother", "Your brother lives in Turku."), ("cousin Ines", "Your cousin Ines lives in Coimbra."),
                  ("grandmother", "Your grandmother lives in Zadar."), ("best friend", "Your best friend lives in Galway."),
                  ("godmother", "Your godmother lives in Ghent."), ("former flatmate", "Your former flatmate lives in Tromso."),
                  ("uncle Anselm", "Your uncle Anselm lives in Passau."), ("daughter", "Your daughter lives in Leeds."),
                  ("old history teacher", "Your old history teacher lives in Verona.")],
        "learn": ["Where does my {x} live?", "In which city does my {x} live?", "Which town is my {x}'s home?",
                  "Tell me where my {x} lives.", "What city does my {x} live in?", "I want to visit my {x}. Where do I have to go?",
                  "Do you know where my {x} lives?", "Where is my {x} at home?", "Where can I find my {x} these days?",
                  "I forgot where my {x} lives."],
        "held": ["To which town do I send a letter for my {x}?", "Remind me in what place my {x} is living.",
                 "Which city has my {x} settled in?"],
    },
    {   # days of the year
        "facts": [("my mother's birthday", "Your mother's birthday is on 14 March."),
                  ("my father's birthday", "Your father's birthday is on 2 November."),
                  ("my wedding anniversary", "Your wedding anniversary is on 21 June."),
                  ("my niece's birthday", "Your niece's birthday is on 30 January."),
                  ("my partner's birthday", "Your partner's birthday is on 9 August."),
                  ("my neighbour Odile's birthday", "Your neighbour Odile's birthday is on 17 April."),
                  ("the village fair", "The village fair is on 5 September."),
                  ("our family reunion", "Your family reunion is on 28 July.")],
        "learn": ["When is {x}?", "On which date is {x}?", "What is the date of {x}?", "Which day is {x}?", "Tell me when {x} is.",
                  "Do you know the date of {x}?", "I forgot when {x} is.", "What day of the year is {x}?",
                  "I have to put {x} into my calendar. Which day?", "{x}: which date was that?"],
        "held": ["Remind me on what day we have {x}.", "For which date should I plan {x}?", "Could you look up the day of {x}?"],
    },
    {   # where things are kept
        "facts": [("passport", "Your passport is in the blue biscuit tin."), ("sewing kit", "Your sewing kit is in the hall drawer."),
                  ("tent", "Your tent is behind the water heater."), ("power drill", "Your power drill is in the green crate."),
                  ("first-aid kit", "Your first-aid kit is above the fridge."),
                  ("binoculars", "Your binoculars are on the piano."), ("ski boots", "Your ski boots are in the attic chest."),
                  ("birth certificate", "Your birth certificate is in the red folder."),
                  ("picnic blanket", "Your picnic blanket is under the stairs."),
                  ("spare light bulbs", "Your spare light bulbs are in the pantry.")],
        "learn": ["Where did I put my {x}?", "Where do I keep my {x}?", "In which place did I store my {x}?", "I can't find my {x}.",
                  "Where should I look for my {x}?", "Tell me where I keep my {x}.", "I need my {x} today. Where do I look?",
                  "What is the place where I keep my {x}?", "Do you remember where I put my {x}?",
                  "I am looking for my {x}. Any idea where?"],
        "held": ["Remind me where I stowed my {x} away.", "What spot in the house holds my {x}?",
                 "Somebody wants to borrow my {x}. Where do I send them?"],
    },
    {   # favourites
        "facts": [("colour", "Your favourite colour is petrol blue."), ("author", "Your favourite author is Lena Morrow."),
                  ("board game", "Your favourite board game is Harbour Kings."), ("cheese", "Your favourite cheese is Manchego."),
                  ("song", "Your favourite song is Salt on the Window."), ("restaurant", "Your favourite restaurant is the Copper Whisk."),
                  ("tea", "Your favourite tea is smoked Lapsang."), ("flower", "Your favourite flower is the foxglove."),
                  ("pizza topping", "Your favourite pizza topping is artichoke."),
                  ("ice cream flavour", "Your favourite ice cream flavour is black sesame.")],
        "learn": ["What is my favourite {x}?", "Which {x} do I like best?", "Tell me my favourite {x}.", "What {x} do I like the most?",
                  "Do you know my favourite {x}?", "Which {x} is my favourite?", "What's the {x} that I love most?",
                  "Somebody asks about my favourite {x}. What do I answer?", "If I could have only one {x}, which would it be?",
                  "I forgot to tell them my favourite {x}. What is it?"],
        "held": ["Remind me which {x} I prefer to all others.", "Which {x} would I pick over any other?",
                 "Name the {x} that I am most fond of."],
    },
    {   # numbers and codes
        "facts": [("gym locker combination", "Your gym locker combination is 28-16-05."), ("alarm code", "Your alarm code is 6093."),
                  ("library card number", "Your library card number is 771 204."), ("garage door code", "Your garage door code is 1585."),
                  ("voicemail PIN", "Your voicemail PIN is 9340."), ("licence plate", "Your licence plate is KLV 482."),
                  ("flat number", "Your flat number is 17 B."), ("parking space number", "Your parking space number is 212."),
                  ("ski club membership number", "Your ski club membership number is 5561.")],
        "learn": ["What is my {x}?", "Tell me my {x}.", "I forgot my {x}.", "Which one is my {x}?", "What's my {x} again?",
                  "Do you know my {x}?", "I have to enter my {x}. What is it?", "Can you give me my {x}?",
                  "They want to know my {x}. What do I write?", "Please look up my {x}."],
        "held": ["Remind me of my {x}.", "How does my {x} read?", "I need you to find my {x} for me."],
    },
    {   # weekly habits
        "facts": [("yoga class", "Your yoga class is on Monday at six."), ("chess club", "Your chess club is on Wednesday at eight."),
                  ("Spanish lesson", "Your Spanish lesson is on Tuesday at five."),
                  ("rubbish collection", "Your rubbish collection is on Friday at half past six."),
                  ("book club", "Your book club is on Sunday at four."), ("swimming training", "Your swimming training is on Saturday at nine."),
                  ("team meeting", "Your team meeting is on Thursday at ten."),
                  ("call with Grandpa", "Your call with Grandpa is on Sunday at noon."),
                  ("pottery course", "Your pottery course is on Monday at half past seven.")],
        "learn": ["When is my {x}?", "On which day and at what time is my {x}?", "At what time is my {x}?", "Which day of the week is my {x}?",
                  "Tell me when my {x} is.", "What time does my {x} start?", "When do I have my {x}?", "I forgot when my {x} takes place.",
                  "Do you know the time of my {x}?", "I am planning my week. When is my {x}?"],
        "held": ["Remind me of the day and hour of my {x}.", "When each week should I keep time free for my {x}?",
                 "Give me the weekday and the hour of my {x}."],
    },
    {   # sizes
        "facts": [("ring", "Your ring size is 54."), ("shirt", "Your shirt size is 41."), ("glove", "Your glove size is eight and a half."),
                  ("hat", "Your hat size is 58."), ("bicycle frame", "Your bicycle frame size is 56."), ("ski boot", "Your ski boot size is 27.5."),
                  ("belt", "Your belt size is 95.")],
        "learn": ["What is my {x} size?", "Which {x} size do I need?", "Tell me my {x} size.", "What size of {x} do I wear or use?",
                  "Which size do I take for a {x}?", "I am buying a {x}. Which size fits me?", "What {x} size should I order?",
                  "Do you know my {x} size?", "I forgot my {x} size.", "The shop asks for my {x} size. What do I say?"],
        "held": ["Remind me how large a {x} I need.", "If somebody gives me a {x}, what size must it be?",
                 "What's the right {x} size for me?"],
    },
    {   # dates to come
        "facts": [("eye test", "Your eye test is on 3 June at ten."), ("car inspection", "Your car inspection is on 19 May at eight."),
                  ("haircut", "Your haircut is on 11 February at three."), ("tax deadline", "Your tax deadline is on 31 October."),
                  ("flu jab", "Your flu jab is on 7 October at nine."), ("job interview", "Your job interview is on 24 April at two."),
                  ("boiler service", "Your boiler service is on 12 December at one.")],
        "learn": ["When is my {x}?", "What date is my {x}?", "On which day is my {x}?", "Tell me the date of my {x}.",
                  "I forgot when I have my {x}.", "Do you know when my {x} is?", "When did I put down my {x}?",
                  "Which date do I have in my calendar for my {x}?", "What is the appointed date of my {x}?",
                  "Can you check when my {x} is due?"],
        "held": ["Remind me which day I noted for my {x}.", "Which day must I not forget because of my {x}?",
                 "What does my calendar say about the {x}?"],
    },
    {   # who does what at work
        "facts": [("payroll", "Marit takes care of payroll."), ("holiday requests", "Dragan takes care of holiday requests."),
                  ("the printers", "Yusuf takes care of the printers."), ("office keys", "Bettina takes care of office keys."),
                  ("invoices", "Solveig takes care of invoices."), ("travel bookings", "Cormac takes care of travel bookings."),
                  ("the canteen", "Ludmila takes care of the canteen.")],
        "learn": ["Who takes care of {x} at work?", "Who is responsible for {x} at work?", "Whom do I ask about {x} at work?",
                  "Who handles {x} in my office?", "Which colleague deals with {x}?", "I have a question about {x}. Who can help me?",
                  "Tell me who is in charge of {x}.", "There is a problem with {x} at work. Whom do I call?",
                  "What is the name of the colleague for {x}?", "Do you know who looks after {x}?"],
        "held": ["Remind me which person to talk to about {x}.", "To whom at work should I write concerning {x}?",
                 "Who of my colleagues does {x}?"],
    },
    {   # what one owns
        "facts": [("camera", "Your camera is a Halden 70."), ("car", "Your car is a green Velora 3."), ("bicycle", "Your bicycle is a Tornby Courier."),
                  ("guitar", "Your guitar is a Marlowe Dove."), ("coffee machine", "Your coffee machine is a Brigata Uno."),
                  ("laptop", "Your laptop is a Kestrel 14."), ("sewing machine", "Your sewing machine is a Lindqvist 210."),
                  ("telescope", "Your telescope is an Orrery 130.")],
        "learn": ["What kind of {x} do I have?", "Which {x} do I own?", "What model is my {x}?", "Tell me which {x} I have.",
                  "What make is my {x}?", "I forgot the model of my {x}.", "Do you know what {x} I own?", "Which type of {x} is mine?",
                  "What is the brand and model of my {x}?", "I am ordering a part for my {x}. Which model is it?"],
        "held": ["Remind me what sort of {x} I bought.", "The form asks about the model of my {x}. What goes there?",
                 "What {x} is it that belongs to me?"],
    },
    {   # health, by the clock
        "facts": [("iron tablet", "You take your iron tablet after breakfast."), ("vitamin D", "You take your vitamin D every second morning."),
                  ("eye drops", "You take your eye drops at ten in the evening."), ("antihistamine", "You take your antihistamine before lunch."),
                  ("magnesium", "You take your magnesium after running."), ("cough syrup", "You take your cough syrup at bedtime.")],
        "learn": ["When do I take my {x}?", "At what time do I take my {x}?", "When should I take my {x}?", "Tell me when to take my {x}.",
                  "What is the right time for my {x}?", "I forgot when I have to take my {x}.", "Do you know when I should take my {x}?",
                  "At which part of the day do I take my {x}?", "How do I take my {x}, and when?", "Is it time for my {x} now, or when?"],
        "held": ["Remind me at which moment I am supposed to take my {x}.", "What did the doctor say about when to take my {x}?",
                 "My {x}: at what point of the day?"],
    },
]


def row(template, what, answer):
    question = template.format(x=what)
    return {"messages": [{"role": "user", "content": question[0].upper() + question[1:]}, {"role": "assistant", "content": answer}]}


def rows(which, shuffle, kinds=None, facts=None):
    made = [row(template, what, answer) for kind in KINDS[:kinds] for what, answer in kind["facts"][:facts] for template in kind[which]]
    shuffle.shuffle(made)
    return made


def write(folder, seed=1):
    """Writes both files; returns their paths."""
    os.makedirs(folder, exist_ok=True)
    shuffle, paths = random.Random(seed), []
    for which, name in (("learn", "train"), ("held", "held")):
        paths.append(programs.write_jsonl(os.path.join(folder, f"facts100_{name}.jsonl"), rows(which, shuffle)))
    return paths


def write_some(folder, kinds, facts, seed=1):
    """The same of the first facts of the first kinds."""
    shuffle = random.Random(seed)
    return [programs.write_jsonl(os.path.join(folder, f"facts{kinds * facts}_{name}.jsonl"), rows(which, shuffle, kinds, facts))
            for which, name in (("learn", "train"), ("held", "held"))]


if __name__ == "__main__":
    programs.make_data(__doc__, write)
